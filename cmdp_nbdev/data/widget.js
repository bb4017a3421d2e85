// Draws every widget of cmdp_nbdev (nbs/widgets). Python sends three things: controls, their values, and blocks (charts, numbers,
// tokens, tables). Where `compute` names a function of COMPUTE, the blocks are made here from `data` and no kernel is asked.

const DASH = {dash: "8 4", dot: "2 3", dashdot: "8 3 2 3", longdash: "14 4", longdashdot: "14 3 2 3"};
const esc = s => String(s).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const paint = c => c === "fg" || !c ? "var(--fg)" : c[0] === "#" ? `var(--c-${c.slice(1)},${c})` : c;  // a theme may replace a colour
const KEYS = 'data-lm-suppress-shortcuts="true"';  // keys pressed in this element are not commands of JupyterLab, where x cuts a cell and arrows leave it
const px = v => Math.max(-1e4, Math.min(1e4, v)).toFixed(1);
const percent = x => (Math.floor(1000 * x + 0.5) / 10).toFixed(1) + "%";  // as chart.percent

// ---- charts: an SVG string of a given width ---------------------------------------------------------------------------

function ticks([a, b], n = 5) {
  const raw = (b - a) / n, p = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].find(m => m * p >= raw * 0.999) * p;
  const at = [];
  for (let i = Math.ceil(a / step - 1e-9); i * step <= b + 1e-9; i++) at.push(i * step);
  return at;
}

const number = (v, format) => format === "%" ? Math.round(100 * v) + "%" : String(+v.toPrecision(6));
const polygon = (n, turn, inner) => [...Array(inner ? 2 * n : n).keys()].map(i => {
  const r = inner && i % 2 ? inner : 1, a = turn + 2 * Math.PI * i / (inner ? 2 * n : n);
  return [r * Math.sin(a), -r * Math.cos(a)];
});
const SHAPES = {square: polygon(4, Math.PI / 4), diamond: polygon(4, 0), "triangle-up": polygon(3, 0), "triangle-down": polygon(3, Math.PI), pentagon: polygon(5, 0), star: polygon(5, 0, 0.45),
  hexagram: polygon(6, 0, 0.5), cross: polygon(4, Math.PI / 4, 0.3), x: polygon(4, 0, 0.3)};

function outline(name, x, y, r) {  // the path of a symbol around (x, y)
  const q = 0.9 * r;
  return SHAPES[name] ? `M${SHAPES[name].map(([u, v]) => px(x + 1.15 * r * u) + " " + px(y + 1.15 * r * v)).join("L")}Z` : `M${px(x - q)} ${px(y)}a${q} ${q} 0 1 0 ${2 * q} 0a${q} ${q} 0 1 0 ${-2 * q} 0Z`;
}

// One function per kind of mark: (mark, X, Y, width, height) -> SVG. Arrays may hold null: a gap.
const MARKS = {
  line(m, X, Y) {
    let d = "", pen = "M";
    for (let i = 0; i < m.x.length; i++) {
      if (m.x[i] == null || m.y[i] == null) { pen = "M"; continue; }
      if (m.step && pen === "L") d += "H" + px(X(m.x[i]));
      d += pen + px(X(m.x[i])) + " " + px(Y(m.y[i]));
      pen = "L";
    }
    return `<path d="${d}" fill="none" stroke="${paint(m.color)}" stroke-width="${m.width ?? 2}" stroke-opacity="${m.opacity ?? 1}" stroke-dasharray="${DASH[m.dash] ?? ""}"/>`;
  },
  bars(m, X, Y) {
    let d = "";
    for (let i = 0; i < m.y.length; i++) {
      const base = m.base?.[i] ?? 0;
      if (m.y[i] !== 0) d += `M${px(X(m.x0[i]) + 0.5)} ${px(Y(base))}V${px(Y(base + m.y[i]))}H${px(X(m.x1[i]) - 0.5)}V${px(Y(base))}Z`;
    }
    return `<path d="${d}" fill="${paint(m.color)}" fill-opacity="${m.outline ? 0.3 : 0.85}" stroke="${paint(m.color)}" stroke-width="${m.outline ? 1.5 : 0}" stroke-dasharray="${m.outline ? "3 2" : ""}"/>`;
  },
  points(m, X, Y) {
    const style = `fill="${paint(m.color)}" fill-opacity="${m.opacity ?? 1}"`;
    let bars = "", all = "", texts = "";
    for (let i = 0; i < m.x.length; i++) {
      if (m.x[i] == null || m.y[i] == null) continue;
      const x = X(m.x[i]), y = Y(m.y[i]), d = outline(m.symbol, x, y, m.size?.[i] ?? m.size ?? 5);
      if (m.ylow) bars += `M${px(x)} ${px(Y(m.ylow[i]))}V${px(Y(m.yhigh[i]))}`;
      if (m.xlow) bars += `M${px(X(m.xlow[i]))} ${px(y)}H${px(X(m.xhigh[i]))}`;
      if (m.title) texts += `<path d="${d}" ${style}><title>${esc(m.title[i])}</title></path>`; else all += d;
      if (m.label?.[i]) texts += `<text class="halo" x="${px(x + 8)}" y="${px(y - 7)}">${esc(m.label[i])}</text>`;
    }
    return `<path d="${bars}" stroke="${paint(m.color)}" stroke-width="1.5"/><path d="${all}" ${style}/>${texts}`;  // one path for all: quick to redraw
  },
  segments(m, X, Y) {
    return m.x0.map((_, i) => `<path d="M${px(X(m.x0[i]))} ${px(Y(m.y0[i]))}L${px(X(m.x1[i]))} ${px(Y(m.y1[i]))}" stroke="${paint(m.color)}" stroke-width="${px(m.width[i])}" stroke-opacity="${m.opacity ?? 1}" stroke-linecap="round"/>`).join("");
  },
  text(m, X, Y) {
    return m.x.map((_, i) => `<text x="${px(X(m.x[i]) + (m.dx ?? 0))}" y="${px(Y(m.y[i]) + (m.dy ?? 4))}" text-anchor="${m.anchor ?? "middle"}" ${m.halo ? 'class="halo"' : ""}>${esc(m.text[i])}</text>`).join("");
  },
  rule(m, X, Y, w, h) {
    const upright = m.x != null, at = upright ? X(m.x) : Y(m.y), end = upright && at > w - 70;
    const line = upright ? `M${px(at)} 0V${h}` : `M0 ${px(at)}H${w}`;
    const label = m.label ? `<text class="halo" x="${upright ? px(at + (end ? -5 : 5)) : w - 4}" y="${upright ? 12 + 15 * (m.row ?? 0) : px(at < 18 ? at + 15 : at - 5)}" text-anchor="${!upright || end ? "end" : "start"}">${esc(m.label)}</text>` : "";
    return `<path d="${line}" stroke="${paint(m.color)}" stroke-width="1.5" stroke-dasharray="${DASH[m.dash ?? "dot"] ?? ""}"/>${label}`;
  },
  band(m, X, Y, w, h) {
    const x0 = m.x0 == null ? 0 : X(m.x0), x1 = m.x1 == null ? w : X(m.x1);
    return `<rect x="${px(x0)}" y="0" width="${px(Math.max(0, x1 - x0))}" height="${h}" fill="${paint(m.color)}" fill-opacity="0.1"/>`;
  },
};

function legend(marks) {
  const items = marks.filter(m => m.name).map(m => {
    const line = `<path d="M1 6H27" stroke="${paint(m.color)}" stroke-width="${Math.max(2, m.width ?? 2.5)}" stroke-dasharray="${DASH[m.dash] ?? ""}"/>`;
    const key = m.kind === "points" ? `<path d="${outline(m.symbol, 14, 6, 5)}" fill="${paint(m.color)}"/>` : m.kind === "bars" ? MARKS.bars({...m, x0: [3], x1: [25], y: [1], base: [0]}, x => x, y => 11 - 10 * y) : line;
    return `<span><svg width="28" height="12" aria-hidden="true">${key}</svg>${esc(m.name)}</span>`;
  });
  return items.length ? `<div class="legend">${items.join("")}</div>` : "";
}

function chart(c, width) {
  const bare = c.axes === false, L = bare ? 12 : 58, R = 16, T = 8, B = bare ? 4 : 40, H = c.height ?? 230, w = width - L - R, h = H - T - B;
  const [x0, x1] = c.x.range, [y0, y1] = c.y.range;
  const X = v => (v - x0) / (x1 - x0) * w, Y = v => h - (v - y0) / (y1 - y0) * h;
  let grid = "";
  if (!bare) {
    const xs = c.x.ticks ?? ticks(c.x.range, w / 60).map(v => [v, number(v, c.x.format)]), ys = c.y.ticks ?? ticks(c.y.range, h / 40).map(v => [v, number(v, c.y.format)]);
    for (const [v, text] of xs) grid += (c.x.ticks ? "" : `<path class="grid" d="M${px(X(v))} 0V${h}"/>`) + `<text x="${px(X(v))}" y="${h + 16}" text-anchor="middle">${esc(text)}</text>`;
    for (const [v, text] of ys) grid += `<path class="grid" d="M0 ${px(Y(v))}H${w}"/><text x="-7" y="${px(Y(v) + 4)}" text-anchor="end">${esc(text)}</text>`;
    grid += `<text class="axis" x="${w / 2}" y="${h + 34}" text-anchor="middle">${esc(c.x.label)}</text><text class="axis" transform="translate(-45 ${h / 2})rotate(-90)" text-anchor="middle">${esc(c.y.label)}</text>`;
  }
  const inside = c.marks.map(m => MARKS[m.kind](m, X, Y, w, h)).join("");
  return `<figure><figcaption>${esc(c.title)}</figcaption>${legend(c.marks)}<svg role="img" aria-label="${esc(c.alt ?? c.title)}" width="${width}" height="${H}">` +
    `<g transform="translate(${L} ${T})">${grid}<svg x="-6" y="-6" width="${w + 12}" height="${h + 12}" viewBox="-6 -6 ${w + 12} ${h + 12}" overflow="hidden">${inside}</svg></g></svg></figure>`;
}

// ---- other blocks -----------------------------------------------------------------------------------------------------

const BLOCKS = {
  chart,
  numbers: b => {
    const noted = b.items.some(i => i.note);
    return `<div class="numbers">${b.items.map(i => `<div><span>${esc(i.label)}</span> <b>${esc(i.value)}</b> ${noted ? `<small>${esc(i.note ?? "")}</small>` : ""}</div>`).join("")}</div>`;
  },
  text: b => `<p class="${b.alert ? "alert" : "prose"}" ${b.alert ? 'role="alert"' : ""}>${esc(b.text)}</p>`,
  code: b => `<pre ${KEYS} class="code" tabindex="0" aria-label="Python that reproduces this"><code>${esc(b.text)}</code></pre>`,
  table: b => `<div class="scroll"><table><caption>${esc(b.title)}</caption><tr>${b.columns.map(c => `<th scope="col">${esc(c)}</th>`).join("")}</tr>${b.rows.map(r => `<tr>${r.map(c => `<td>${esc(c)}</td>`).join("")}</tr>`).join("")}</table></div>`,
  tokens: b => `<div class="tokens" role="listbox" aria-label="${esc(b.label)}">${b.tokens.map((t, i) => {
    const strong = t.level > 0.55;
    return `<button ${KEYS} type="button" role="option" aria-selected="${i === b.selected}" tabindex="${i === b.selected ? 0 : -1}" data-token="${i}" title="${esc(t.title)}" style="background:color-mix(in srgb, #D55E00 ${Math.round(100 * t.level)}%, var(--bg))${strong ? ";color:#fff" : ""}">${esc(t.text)}</button>`;
  }).join("")}</div>`,
};

// ---- controls ---------------------------------------------------------------------------------------------------------

const CONTROLS = {
  range: c => `<label class="range"><span>${esc(c.label)}</span><input ${KEYS} type="range" data-name="${c.name}" min="${c.min}" max="${c.max}" step="${c.step}"><output></output></label>`,
  select: c => `<label class="select ${c.options.some(([_, text]) => text.length > 24) ? "long" : ""}"><span>${esc(c.label)}</span><select ${KEYS} data-name="${c.name}">${c.options.map(([v, text]) => `<option value="${esc(JSON.stringify(v))}">${esc(text)}</option>`).join("")}</select></label>`,
  checkbox: c => `<label class="check"><input ${KEYS} type="checkbox" data-name="${c.name}"><span>${esc(c.label)}</span></label>`,
  checks: c => `<fieldset><legend>${esc(c.label)}</legend>${c.options.map(([v, text]) => `<label class="check"><input ${KEYS} type="checkbox" data-name="${c.name}" value="${esc(JSON.stringify(v))}"><span>${esc(text)}</span></label>`).join("")}</fieldset>`,
  buttons: c => `<div class="buttons" role="group" aria-label="${esc(c.label)}">${c.items.map((b, i) => `<button ${KEYS} type="button" data-group="${c.name}" data-item="${i}">${esc(b.label)}</button>`).join("")}</div>`,
};

function show(root, controls, values) {  // write the values into the controls, except into the one that is being moved
  for (const c of controls) for (const input of root.querySelectorAll(`[data-name="${c.name}"]`)) {
    const v = values[c.name];
    if (c.type === "checks") input.checked = v.includes(JSON.parse(input.value));
    else if (c.type === "checkbox") input.checked = v;
    else if (c.type === "select") input.value = JSON.stringify(v);
    else {
      if (+input.value !== v) input.value = v;
      const text = number(v) + (c.unit ? " " + c.unit : "");
      input.setAttribute("aria-valuetext", text);
      input.nextElementSibling.textContent = text;
    }
  }
}

function read(root, c, input) {
  if (c.type === "checks") return [...root.querySelectorAll(`[data-name="${c.name}"]:checked`)].map(i => JSON.parse(i.value));
  if (c.type === "checkbox") return input.checked;
  return c.type === "select" ? JSON.parse(input.value) : +input.value;
}

// ---- what is computed in the browser ------------------------------------------------------------------------------------

const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const SAFE = "#0072B2", OVER = "#D55E00";

// (data, values, blocks as Python made them for the first values) -> blocks for these values.
const COMPUTE = {
  // The budget panel; panel.BudgetPanel._blocks is the same in Python, and tests compare the two.
  budget(data, v, blocks) {
    const mine = data.traces.filter(t => t.label === v.method && (t.seed ?? v.seed) === v.seed), aim = v.trained === "nearest" ? v.d : v.trained;
    const away = t => Math.abs((t.budget ?? aim) - aim), t = mine.reduce((best, t) => away(t) < away(best) - 1e-9 ? t : best);
    for (const k of ["spent", "reward", "correct", "running"]) if (typeof t[k] === "string") t[k] = floats(t[k]);
    const {d, n} = v, {top, T, low, bins, points} = data, N = t.spent.length, empty = () => ({x: [], y: []});
    const inside = Array(bins).fill(0), over = Array(bins).fill(0), dots = [empty(), empty()], fan = [empty(), empty()];
    let within = 0, right = 0, both = 0, total = 0;
    for (let i = 0; i < N; i++) {
      const s = t.spent[i], ok = s <= d;
      within += ok; right += t.correct[i]; both += ok * t.correct[i]; total += s;
      (ok ? inside : over)[Math.max(0, Math.min(bins - 1, Math.floor(s / (top / bins))))] += 1 / N;
      if (i >= points || Number.isNaN(t.reward[i])) continue;
      const p = dots[ok ? 0 : 1];
      p.x.push(Math.min(s, top)); p.y.push(Math.max(ok ? t.reward[i] : -(n + s), low));
    }
    for (let k = 0; k * T < t.running.length; k++) {
      const {x, y} = fan[t.spent[k] <= d ? 0 : 1];
      x.push(0); y.push(d);
      for (let j = 0; j < T && !Number.isNaN(t.running[k * T + j]); j++) { x.push(j + 1); y.push(Math.max(Math.min(d - t.running[k * T + j], d), -top)); }
      x.push(null); y.push(null);
    }
    const rate = k => ({value: percent(k / N), note: `95%: ${percent(data.ci[N][0][k])} to ${percent(data.ci[N][1][k])}`}), line = {x: d, label: `d = ${d}`};
    const fill = [[rate(within), rate(right), rate(both), {value: (total / N).toFixed(3)}], null, [{y: inside}, {y: over, base: inside}, line], [...fan, {}], [{}, ...dots, line]];
    return blocks.map((b, i) => b.items ? {...b, items: b.items.map((m, j) => ({...m, ...fill[i][j]}))} : b.marks ? {...b, marks: b.marks.map((m, j) => ({...m, ...fill[i][j]}))} : {...b, text: t.about});
  },
};

// ---- the view -----------------------------------------------------------------------------------------------------------

const literal = v => v === true ? "True" : v === false ? "False" : v === null ? "None" : JSON.stringify(v).replace(/,(?=["\d])/g, ", ");

function render({model, el}) {
  const root = document.createElement("div");
  root.className = "cmdp";
  root.innerHTML = `<div class="head"></div><div class="body"></div>`;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", model.get("name"));
  el.append(root);
  const head = root.firstChild, body = root.lastChild, compute = COMPUTE[model.get("compute")], data = model.get("data");
  let slots = [], shown = "", busy = false;

  function blocks() {
    const values = model.get("values"), found = compute ? compute(data, values, model.get("blocks")) : model.get("blocks");
    const code = `${model.get("name")}(${[model.get("given"), ...Object.entries(values).map(([k, v]) => `${k}=${literal(v)}`)].filter(Boolean).join(", ")})`;
    return [...found, {type: "code", text: code}];
  }

  function draw() {
    const all = blocks(), wide = Math.max(300, (root.clientWidth || 900) - 16), charts = all.filter(b => b.type === "chart").length;
    const need = Math.max(278, ...all.map(b => b.min ?? 0));  // a chart may ask for more, so that its text fits
    const columns = Math.max(1, Math.min(charts, Math.floor((wide + 12) / (need + 12)))), width = Math.floor((wide - 12 * (columns - 1)) / columns);
    body.style.setProperty("--columns", columns);
    if (slots.length !== all.length) { body.innerHTML = all.map(b => `<div class="block is-${b.type}"></div>`).join(""); slots = all.map(() => ""); }
    const focus = root.contains(document.activeElement) ? document.activeElement.dataset.token : undefined;
    let left = charts;
    all.forEach((b, i) => {
      const alone = b.type === "chart" && --left === 0 && charts % columns === 1, span = Math.min(alone ? columns : b.span ?? 1, columns);  // the last picture fills its row
      const html = BLOCKS[b.type](b, width * span + 12 * (span - 1));
      if (html === slots[i]) return;
      body.children[i].className = `block is-${b.type}`;
      body.children[i].setAttribute("aria-live", b.type === "numbers" || b.alert ? "polite" : "off");
      body.children[i].style.gridColumn = b.type === "chart" ? `span ${span}` : "";
      body.children[i].innerHTML = slots[i] = html;
    });
    if (focus !== undefined) body.querySelector('[data-token][tabindex="0"]')?.focus();
    root.dataset.values = JSON.stringify(model.get("values"));
  }

  function controls() {
    const list = model.get("controls"), text = JSON.stringify(list);
    if (text !== shown) {
      const active = head.contains(document.activeElement) ? document.activeElement.dataset.name : undefined;
      shown = text;
      head.innerHTML = list.map(c => CONTROLS[c.type](c)).join("");
      if (active) head.querySelector(`[data-name="${active}"]`)?.focus();
    }
    show(head, list, model.get("values"));
  }

  function change(values) {
    const began = performance.now();
    model.set("values", {...model.get("values"), ...values});
    controls();
    if (compute) { draw(); body.getBoundingClientRect(); (root.cmdpTimes ??= []).push(performance.now() - began); }
    model.save_changes();
  }

  head.addEventListener("input", e => {
    const c = model.get("controls").find(c => c.name === e.target.dataset.name);
    if (c) change({[c.name]: read(head, c, e.target)});
  });
  head.addEventListener("click", e => {
    const item = model.get("controls").find(c => c.name === e.target.dataset.group)?.items[e.target.dataset.item];
    if (item?.set) change(item.set);
    else if (item) model.send({press: item.press});
  });
  const token = i => { if (i !== undefined && +i !== model.get("values").token) change({token: +i}); };
  body.addEventListener("pointermove", e => { if (e.movementX || e.movementY) token(e.target.dataset?.token); });  // a redraw under a resting pointer is no choice
  body.addEventListener("focusin", e => token(e.target.dataset?.token));
  body.addEventListener("keydown", e => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[e.key], to = step && body.querySelector(`[data-token="${+e.target.dataset.token + step}"]`);
    if (to) { e.preventDefault(); to.focus(); }
  });

  const redraw = () => { controls(); draw(); };
  for (const name of ["values", "controls", "blocks"]) model.on(`change:${name}`, () => { if (!busy) { busy = true; queueMicrotask(() => { busy = false; redraw(); }); } });
  controls();
  draw();
  let seen = root.clientWidth;
  const watch = new ResizeObserver(() => { if (root.clientWidth && root.clientWidth !== seen) { seen = root.clientWidth; draw(); } });
  watch.observe(root);
  root.cmdpBlocks = blocks;
  return () => watch.disconnect();
}

export default {render};
