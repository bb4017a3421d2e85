
// ==== the page: above, the drawing functions of the widgets; here, what this page does ==========

const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const LOG2 = Math.log(2), BLUE = "#0072B2", GREEN = "#009E73", RED = "#D55E00";

function draw(id, charts) {  // charts as wide as their place
  const place = at(id), gap = 16, wide = place.clientWidth;
  const columns = place.classList.contains("two") && wide >= 2 * 340 + gap ? 2 : 1;
  const width = Math.max(200, Math.floor((wide - gap * (columns - 1)) / columns));
  place.innerHTML = charts.map(c => `<div>${chart(c, width)}</div>`).join("");
}

const share = x => percent(x);
const nats = x => x.toFixed(2);

// ---- 1: the purse --------------------------------------------------------------------------

const PURSE = 0.8, MOST = 3 * LOG2;
const xlogx = (p, q) => p > 0 ? p * Math.log(p / q) : 0;
const coin = p => xlogx(p, 0.5) + xlogx(1 - p, 0.5);  // kl(p‖½), nats

function surest(k) {  // the largest p with kl(p‖½) <= k
  if (k >= LOG2) return 1;
  let low = 0.5, high = 1;
  for (let i = 0; i < 60; i++) {
    const mid = (low + high) / 2;
    if (coin(mid) <= k) low = mid; else high = mid;
  }
  return low;
}

// As log p is concave in kl(p‖½), the best is to spend alike at every step.
const best = d => surest(d / 3) ** 3;
const oneByOne = d => [0, 1, 2].reduce((p, i) => p * surest(Math.max(0, d - i * LOG2)), 1);

const EXAMPLES = {
  "as the teacher": [0.5, 0.5, 0.5],
  "one whole correction": [1, 0.5, 0.5],
  "two half ones": [surest(LOG2 / 2), surest(LOG2 / 2), 0.5],
  "show me the best": Array(3).fill(surest(PURSE / 3)),
};
const STEPS = ["3*6 = 8", "8*7 = 6", "6*8 = 8"];
let sure = [0.5, 0.5, 0.5];

function purseState() {
  const costs = sure.map(coin), spent = costs.reduce((a, b) => a + b);
  const right = sure.reduce((a, b) => a * b);
  return {costs, spent, right, over: spent > PURSE + 1e-9};
}

function purseSentence({spent, right, over}) {
  const had = `Spent <b>${nats(spent)}</b> of ${nats(PURSE)} nats; right in <b>${share(right)}</b>.`;
  const ceiling = best(PURSE);
  if (over) {
    const by = `<span class="bad">The purse is overdrawn by ${nats(spent - PURSE)} nats.</span>`;
    return `${had} ${by} What is right beyond the budget does not count.`;
  }
  const missing = ceiling - right;
  if (missing < 5e-4)
    return `${had} <span class="good">✓ The exact optimum: nobody gets more out of it.</span>`;
  if (missing < 0.01)
    return `${had} <span class="good">✓ Within a point of the optimum, ${share(ceiling)}.</span>`;
  const left = PURSE - spent > 0.005 ? `${nats(PURSE - spent)} nats are left; ` : "";
  return `${had} ${left}the best that ${nats(PURSE)} nats buy is ${share(ceiling)}.`;
}

function stepNames() {  // beside their points; of those that lie on each other one has all
  const same = (p, i) => Math.abs(p - sure[i]) < 0.02;
  return sure.map((p, i) => sure.findIndex((q, j) => same(q, i)) < i ? ""
    : sure.map((q, j) => same(q, i) ? j + 1 : 0).filter(Boolean).join(", "));
}

function purseCharts({costs, spent, right}) {
  const grid = [...Array(201).keys()], ps = grid.map(i => i / 200);
  const cost = {
    title: "What leaving the coin costs at one step", height: 230, marks: [
      {kind: "line", x: ps, y: ps.map(coin), color: BLUE, width: 2.5},
      {kind: "rule", y: LOG2, color: "fg", label: "log 2 = 0.69"},
      {kind: "points", x: sure, y: costs, color: RED, size: 7, label: stepNames()},
    ],
    x: {label: "how sure of the right digit, p", range: [0, 1]},
    y: {label: "kl(p‖½), nats", range: [0, 0.8]},
    alt: "A curve with its minimum, zero, at one half, that rises to log 2 at both ends.",
  };
  const ds = grid.map(i => MOST * i / 200);
  const buys = {
    title: "What a purse can buy", height: 230, marks: [
      {kind: "line", x: ds, y: ds.map(best), name: "the best split", color: GREEN, width: 2.5},
      {kind: "line", x: ds, y: ds.map(oneByOne), name: "one step after the other", color: "#7F7F7F",
        dash: "dash"},
      {kind: "rule", x: PURSE, color: "fg", label: "d = 0.8"},
      {kind: "points", x: [spent], y: [right], name: "you", color: RED, size: 7, symbol: "diamond"},
    ],
    x: {label: "nats spent", range: [0, 2.1]}, y: {label: "right", range: [0, 1], format: "%"},
    alt: "Two curves from one eighth to one; the best split lies above correcting step by step.",
  };
  return [cost, buys];
}

function drawPurse() {
  const state = purseState(), {costs, spent, right, over} = state;
  sure.forEach((p, i) => {
    const input = at(`p${i}`), text = `p = ${p.toFixed(2)}, costs ${nats(costs[i])} nats`;
    if (Math.abs(+input.value - p) > 0.0026) input.value = p;
    input.setAttribute("aria-valuetext", text);
    at(`p${i}-out`).textContent = text;
  });
  let from = 0;
  const part = (c, i) => {
    const left = 100 * from / 2.1, width = 100 * c / 2.1;
    from += c;
    return `<i style="left:${left}%;width:${width}%">${width > 4 ? i + 1 : ""}</i>`;
  };
  const mark = (x, text, below) => `<div class="mark ${below ? "below" : ""}" style="left:${x}%">` +
    `<span>${text}</span></div>`;
  at("purse-bar").innerHTML = costs.map(part).join("") + mark(100 * PURSE / 2.1, "purse: 0.80 nats");
  at("purse-bar").classList.toggle("over", over);
  at("purse-gauge").innerHTML = `<i style="width:${100 * right}%"></i>` +
    mark(12.5, "teacher", true) + mark(100 * best(PURSE), "best for 0.8 nats", true);
  at("purse-gauge").classList.toggle("over", over);
  at("purse-say").innerHTML = purseSentence(state);
  draw("purse-charts", purseCharts(state));
}

function setUpPurse() {
  at("purse-sliders").innerHTML = STEPS.map((text, i) => `<label class="range">
    <span>step ${i + 1}: ${text}</span>
    <input type="range" id="p${i}" min="0" max="1" step="0.005" value="0.5">
    <output id="p${i}-out" for="p${i}"></output></label>`).join("");
  STEPS.forEach((_, i) => at(`p${i}`).addEventListener("input", e => {
    sure[i] = +e.target.value;
    drawPurse();
  }));
  const names = Object.keys(EXAMPLES);
  at("purse-buttons").innerHTML = names.map(name => {
    const first = name.startsWith("show") ? 'class="first"' : "";
    return `<button type="button" ${first}>${name}</button>`;
  }).join("");
  at("purse-buttons").addEventListener("click", e => {
    const found = EXAMPLES[e.target.textContent];
    if (!found) return;
    sure = [...found];
    drawPurse();
  });
}

// ---- 2: the limit --------------------------------------------------------------------------

const whole = text => new Uint16Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const PANEL = data.panel, VIEW = {top: 2, bins: 40};
for (const t of [PANEL.start, ...PANEL.after]) {
  t.spent = Float64Array.from(whole(t.spent), v => v / 1000);
  t.correct = whole(t.correct);
}
const CI = {[PANEL.n]: [PANEL.low, PANEL.high]};

function shownStudent(name, d) {  // of its kind, the one trained for the nearest limit
  const mine = PANEL.after.filter(t => t.name === name);
  const away = t => Math.abs((t.budget ?? d) - d);
  return mine.reduce((a, b) => away(b) < away(a) - 1e-9 ? b : a);
}

function spentChart(t, d, title) {
  const [inside, over] = histogram(t, d, VIEW), width = VIEW.top / VIEW.bins;
  const x0 = inside.map((_, i) => i * width), x1 = x0.map(x => x + width);
  return {
    title, height: 210, marks: [
      {kind: "bars", x0, x1, y: inside, name: "inside", color: BLUE},
      {kind: "bars", x0, x1, y: over, base: inside, name: "over", color: RED, outline: true},
      {kind: "rule", x: d, color: "fg", label: `d = ${nats(d)}`},
    ],
    x: {label: "spent, nats; last bar: 2 and more", range: [0, VIEW.top]},
    y: {label: "share", range: [0, 0.6], format: "%"},
    alt: `Histogram of what the completions spent, ${title}; the limit d is a line.`,
  };
}

const brief = note => note.replace("95%: ", "").replace("% to ", "–");

function panelTable(rows) {
  const head = ["", "inside", "right", "right and inside", "mean spent"];
  const cell = r => `<td class="n">${r.value}<small>${r.note ?? "nats"}</small></td>`;
  return `<caption>Shares of ${PANEL.n} completions, with exact 95% intervals</caption>
    <tr>${head.map((h, i) => `<th scope="col" class="${i ? "n" : ""}">${h}</th>`).join("")}</tr>` +
    rows.map(([name, t, d]) => `<tr><th scope="row">${name}</th>` +
      rates(t, d, CI).map(r => cell({...r, note: r.note && brief(r.note)})).join("") +
      "</tr>").join("");
}

function drawPanel() {
  const d = +at("panel-d").value, name = at("panel-student").value, t = shownStudent(name, d);
  const text = `${nats(d)} nats`;
  at("panel-d").setAttribute("aria-valuetext", text);
  at("panel-d-out").textContent = text;
  const trained = t.budget == null ? "which reads no limit" : `trained for d = ${t.budget}`;
  const short = `${name}, ${trained}`;
  at("panel-say").innerHTML = `After: <b>${esc(name)}</b>, ${esc(data.methods[name].words)}; ` +
    `${esc(trained)}.`;
  draw("panel-charts", [spentChart(PANEL.start, d, "Before training"),
    spentChart(t, d, `After: ${short}`)]);
  at("panel-table").innerHTML = panelTable([["before", PANEL.start, d], ["after", t, d]]);
}

function setUpPanel() {
  const names = [...new Set(PANEL.after.map(t => t.name))];
  at("panel-student").innerHTML = names.map(name =>
    `<option value="${name}">${esc(`${name}: ${data.methods[name].words}`)}</option>`).join("");
  for (const id of ["panel-d", "panel-student"]) at(id).addEventListener("input", drawPanel);
}

// ---- 3: the comparison ---------------------------------------------------------------------

const T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776};  // quantiles .975 of Student's t, n - 1
const FIRST = ["cmdp-rate", "cmdp", "hinge", "saute-augmented", "kdrl", "grpo", "gkd"];

function over(seeds, k) {  // mean of a column and half of its 95% interval over seeds
  const x = seeds.map(s => s[k]), n = x.length, mean = x.reduce((a, b) => a + b) / n;
  const variance = x.reduce((a, b) => a + (b - mean) ** 2, 0) / Math.max(1, n - 1);
  return {mean, half: n > 1 ? T[n] * Math.sqrt(variance / n) : NaN, n};
}

function summary(name, seeds) {
  const [right, inside, both] = [0, 1, 2].map(k => over(seeds, k));
  return {name, seeds, right, inside, both, ...(data.methods[name] ?? data.methods.soft)};
}

const interval = (low, high) => `${share(low).slice(0, -1)}–${share(high)}`;
const ends = ({mean, half}) => [Math.max(0, mean - half), Math.min(1, mean + half)];
const diverged = r => r.right.mean < 0.3;

function methodMarks(r) {  // seeds small, their mean large; an interval where there are seeds enough
  const look = {kind: "points", color: r.color, symbol: r.symbol};
  const words = seed => `${r.name}: right ${share(seed[0])}, inside ${share(seed[1])}`;
  const small = {...look, x: r.seeds.map(s => s[1]), y: r.seeds.map(s => s[0]), size: 3.5,
    opacity: 0.5, title: r.seeds.map(words)};
  const large = {...look, x: [r.inside.mean], y: [r.right.mean], size: 8,
    label: [r.name], title: [`mean of ${r.seeds.length}: ${words([r.right.mean, r.inside.mean])}`]};
  if (r.seeds.length >= 3) {
    [large.xlow, large.xhigh] = ends(r.inside).map(v => [v]);
    [large.ylow, large.yhigh] = ends(r.right).map(v => [v]);
  }
  return [small, large];
}

function compareChart(rows, {mixtures, prices}, zoom, optimum) {
  const shown = rows.filter(r => !zoom || !diverged(r));
  const fixed = Object.entries(prices).map(([text, seeds]) =>
    ({text, x: over(seeds, 1).mean, y: over(seeds, 0).mean}));
  let x = [0, 1.02], y = [0, 1.02];
  if (zoom) {
    const lowest = k => Math.min(...shown.flatMap(r => r.seeds.map(s => s[k])),
      ...fixed.map(f => k ? f.x : f.y), 0.95);
    x = [Math.max(0, Math.floor(20 * lowest(1) - 0.2) / 20), 1.005];
    y = [Math.max(0, Math.floor(20 * lowest(0) - 0.2) / 20), 1.005];
  }
  const all = key => fixed.map(f => f[key]);
  return {
    title: "Right against inside", height: 430, marks: [
      {kind: "line", x: mixtures.map(p => p[0]), y: mixtures.map(p => p[1]), color: "#E69F00",
        dash: "dashdot", name: "mixtures of fixed prices, with hindsight"},
      {kind: "points", x: all("x"), y: all("y"), color: "#E69F00", symbol: "diamond", size: 4,
        name: "fixed prices", title: all("text")},
      {kind: "points", x: [1], y: [optimum], color: "fg", symbol: "star", size: 8,
        name: "exact optimum", title: [`exact optimum ${share(optimum)}`]},
      {kind: "rule", x: 0.95, color: "fg", label: "95%"},
      ...shown.flatMap(methodMarks),
    ],
    x: {label: "inside the budget", range: x, format: "%"},
    y: {label: "right", range: y, format: "%"},
    alt: "Accuracy against satisfaction rate of each method; the table below has the numbers.",
  };
}

function compareTable(rows, d) {
  const head = ["method", "right and inside", "right", "inside", "seeds"];
  const number = r => {
    const [low, high] = ends(r);
    return `<td class="n">${share(r.mean)}<small>${interval(low, high)}</small></td>`;
  };
  const row = r => `<tr class="${r.name === "cmdp-rate" ? "first" : ""}"><td>${esc(r.name)}` +
    `<small class="words">${esc(r.words)}</small></td>${number(r.both)}` +
    `${number(r.right)}${number(r.inside)}<td class="n">${r.seeds.length}</td></tr>`;
  return `<caption>At d = ${d}, best first, with 95% intervals over seeds</caption>` +
    `<tr>${head.map((h, i) => `<th scope="col" class="${i ? "n" : ""}">${h}</th>`).join("")}</tr>` +
    rows.map(row).join("");
}

function drawCompare() {
  const d = at("compare-d").value, zoom = at("compare-zoom").checked, here = data.compared[d];
  const ticked = [...document.querySelectorAll("#compare-methods input")]
    .filter(box => box.checked).map(box => box.value);
  const rows = ticked.filter(name => here.methods[name])
    .map(name => summary(name, here.methods[name])).sort((a, b) => b.both.mean - a.both.mean);
  const optimum = data.optimum.find(([budget]) => budget === +d)[1];
  draw("compare-chart", [compareChart(rows, here, zoom, optimum)]);
  const gone = zoom ? rows.filter(diverged).map(r => r.name) : [];
  const none = ticked.filter(name => !here.methods[name]);
  const notes = [];
  if (gone.length) notes.push(`Outside the picture, diverged: ${gone.join(", ")}.`);
  if (none.length) notes.push(`Not trained for d = ${d}: ${none.join(", ")}.`);
  if (rows.some(r => r.seeds.length < 3))
    notes.push("Of two seeds no interval is drawn; in the table it is wide, as it should be.");
  at("compare-say").textContent = notes.join(" ");
  at("compare-table").innerHTML = compareTable(rows, d);
}

function setUpCompare() {
  at("compare-d").innerHTML = Object.keys(data.compared).map(d =>
    `<option value="${d}" ${d === "0.8" ? "selected" : ""}>${d} nats</option>`).join("");
  const names = Object.keys(data.methods).filter(name => name !== "soft");
  const symbol = m => `<svg width="16" height="14" aria-hidden="true">` +
    `<path d="${outline(m.symbol, 8, 7, 5)}" fill="${paint(m.color)}"/></svg>`;
  at("compare-methods").insertAdjacentHTML("beforeend", names.map(name => {
    const m = data.methods[name], on = FIRST.includes(name) ? "checked" : "";
    return `<label class="check"><input type="checkbox" value="${name}" ${on}>${symbol(m)}` +
      `<span>${esc(name)}</span></label>`;
  }).join(""));
  for (const id of ["compare-d", "compare-zoom", "compare-methods"])
    at(id).addEventListener("input", drawCompare);
}

// ---- all -----------------------------------------------------------------------------------

setUpPurse();
setUpPanel();
setUpCompare();
const drawAll = () => { drawPurse(); drawPanel(); drawCompare(); };
drawAll();
let lastWidth = document.body.clientWidth;
new ResizeObserver(() => {
  if (document.body.clientWidth === lastWidth) return;
  lastWidth = document.body.clientWidth;
  drawAll();
}).observe(document.body);
