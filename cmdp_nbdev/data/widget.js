// Draws every widget of cmdp_nbdev (nbs/widgets). Python sends three things: controls, their
// values, and blocks (charts, numbers, tokens, tables). Where `compute` names a function of
// COMPUTE, the blocks are made here from `data` and no kernel is asked.

const SPECIAL = /[&<>"]/g;
const esc = s => String(s).replace(SPECIAL, c => `&#${c.charCodeAt(0)};`);
const percent = x => (Math.floor(1000 * x + 0.5) / 10).toFixed(1) + "%";  // as chart.percent
const short = v => String(+v.toPrecision(6));
const number = (v, format) => format === "%" ? Math.round(100 * v) + "%" : short(v);
const px = v => Math.max(-1e4, Math.min(1e4, v)).toFixed(1);

// Keys pressed in this element are not commands of JupyterLab, where x cuts a cell.
const KEYS = 'data-lm-suppress-shortcuts="true"';

// ---- how a mark looks -----------------------------------------------------------------------

const DASH = {
  dash: "8 4", dot: "2 3", dashdot: "8 3 2 3", longdash: "14 4", longdashdot: "14 3 2 3",
};
const dashes = name => `stroke-dasharray="${DASH[name] ?? ""}"`;

function paint(color) {  // a theme may replace a colour
  if (!color || color === "fg") return "var(--fg)";
  return color[0] === "#" ? `var(--c-${color.slice(1)},${color})` : color;
}

function polygon(n, turn, inner) {  // corners on the unit circle; with `inner`, a star
  const corners = inner ? 2 * n : n;
  return [...Array(corners).keys()].map(i => {
    const r = inner && i % 2 ? inner : 1, a = turn + 2 * Math.PI * i / corners;
    return [r * Math.sin(a), -r * Math.cos(a)];
  });
}

const SHAPES = {
  square: polygon(4, Math.PI / 4),
  diamond: polygon(4, 0),
  "triangle-up": polygon(3, 0),
  "triangle-down": polygon(3, Math.PI),
  pentagon: polygon(5, 0),
  star: polygon(5, 0, 0.45),
  hexagram: polygon(6, 0, 0.5),
  cross: polygon(4, Math.PI / 4, 0.3),
  x: polygon(4, 0, 0.3),
};

function outline(symbol, x, y, r) {  // its path around (x, y)
  const shape = SHAPES[symbol], q = 0.9 * r, half = `a${q} ${q} 0 1 0`;
  if (!shape) return `M${px(x - q)} ${px(y)}${half} ${2 * q} 0${half} ${-2 * q} 0Z`;  // a circle
  const corners = shape.map(([u, v]) => px(x + 1.15 * r * u) + " " + px(y + 1.15 * r * v));
  return `M${corners.join("L")}Z`;
}

// ---- marks: (mark, X, Y, width, height) -> SVG. Arrays may hold null: a gap. ----------------

const MARKS = {
  line(m, X, Y) {
    let d = "", pen = "M";
    for (let i = 0; i < m.x.length; i++) {
      if (m.x[i] == null || m.y[i] == null) { pen = "M"; continue; }
      if (m.step && pen === "L") d += "H" + px(X(m.x[i]));
      d += pen + px(X(m.x[i])) + " " + px(Y(m.y[i]));
      pen = "L";
    }
    const stroke = `stroke="${paint(m.color)}" stroke-width="${m.width ?? 2}" ${dashes(m.dash)}`;
    return `<path d="${d}" fill="none" ${stroke} stroke-opacity="${m.opacity ?? 1}"/>`;
  },

  bars(m, X, Y) {
    let d = "";
    for (let i = 0; i < m.y.length; i++) {
      if (m.y[i] === 0) continue;
      const base = m.base?.[i] ?? 0, foot = px(Y(base)), top = px(Y(base + m.y[i]));
      d += `M${px(X(m.x0[i]) + 0.5)} ${foot}V${top}H${px(X(m.x1[i]) - 0.5)}V${foot}Z`;
    }
    const [opacity, width, dash] = m.outline ? [0.3, 1.5, "3 2"] : [0.85, 0, ""];
    const edge = `stroke="${paint(m.color)}" stroke-width="${width}" stroke-dasharray="${dash}"`;
    return `<path d="${d}" fill="${paint(m.color)}" fill-opacity="${opacity}" ${edge}/>`;
  },

  points(m, X, Y, w) {
    const style = `fill="${paint(m.color)}" fill-opacity="${m.opacity ?? 1}"`;
    let bars = "", all = "", texts = "";
    for (let i = 0; i < m.x.length; i++) {
      if (m.x[i] == null || m.y[i] == null) continue;
      const x = X(m.x[i]), y = Y(m.y[i]), d = outline(m.symbol, x, y, m.size?.[i] ?? m.size ?? 5);
      if (m.ylow) bars += `M${px(x)} ${px(Y(m.ylow[i]))}V${px(Y(m.yhigh[i]))}`;
      if (m.xlow) bars += `M${px(X(m.xlow[i]))} ${px(y)}H${px(X(m.xhigh[i]))}`;
      if (m.title) texts += `<path d="${d}" ${style}><title>${esc(m.title[i])}</title></path>`;
      else all += d;  // one path for all: quick to redraw
      const end = x + 12 + 7 * (m.label?.[i]?.length ?? 0) > w;  // no place: on the left
      const side = end ? -8 : 8, anchor = end ? 'text-anchor="end"' : "";
      const place = `x="${px(x + side)}" y="${px(y - 7)}" ${anchor}`;
      if (m.label?.[i]) texts += `<text class="halo" ${place}>${esc(m.label[i])}</text>`;
    }
    const intervals = `<path d="${bars}" stroke="${paint(m.color)}" stroke-width="1.5"/>`;
    return `${intervals}<path d="${all}" ${style}/>${texts}`;
  },

  segments(m, X, Y) {
    const stroke = `stroke="${paint(m.color)}" stroke-opacity="${m.opacity ?? 1}"`;
    return m.x0.map((_, i) => {
      const d = `M${px(X(m.x0[i]))} ${px(Y(m.y0[i]))}L${px(X(m.x1[i]))} ${px(Y(m.y1[i]))}`;
      return `<path d="${d}" ${stroke} stroke-width="${px(m.width[i])}" stroke-linecap="round"/>`;
    }).join("");
  },

  text(m, X, Y) {
    const style = `text-anchor="${m.anchor ?? "middle"}" ${m.halo ? 'class="halo"' : ""}`;
    return m.x.map((_, i) => {
      const x = px(X(m.x[i]) + (m.dx ?? 0)), y = px(Y(m.y[i]) + (m.dy ?? 4));
      return `<text x="${x}" y="${y}" ${style}>${esc(m.text[i])}</text>`;
    }).join("");
  },

  rule(m, X, Y, w, h) {
    const upright = m.x != null, at = upright ? X(m.x) : Y(m.y);
    const style = `stroke="${paint(m.color)}" stroke-width="1.5" ${dashes(m.dash ?? "dot")}`;
    const line = `<path d="${upright ? `M${px(at)} 0V${h}` : `M0 ${px(at)}H${w}`}" ${style}/>`;
    if (!m.label) return line;
    const end = !upright || at > w - 70;  // near the right edge, the text stands on the left
    const x = upright ? px(at + (end ? -5 : 5)) : w - 4;
    const y = upright ? 12 + 15 * (m.row ?? 0) : px(at < 18 ? at + 15 : at - 5);
    const place = `x="${x}" y="${y}" text-anchor="${end ? "end" : "start"}"`;
    return `${line}<text class="halo" ${place}>${esc(m.label)}</text>`;
  },

  band(m, X, Y, w, h) {
    const x0 = m.x0 == null ? 0 : X(m.x0), x1 = m.x1 == null ? w : X(m.x1);
    const size = `x="${px(x0)}" y="0" width="${px(Math.max(0, x1 - x0))}" height="${h}"`;
    return `<rect ${size} fill="${paint(m.color)}" fill-opacity="0.1"/>`;
  },
};

// ---- charts: an SVG string of a given width -------------------------------------------------

function ticks([a, b], n = 5) {  // about n round numbers between a and b
  const raw = (b - a) / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(m => m * power >= raw * 0.999) * power;
  const at = [];
  for (let i = Math.ceil(a / step - 1e-9); i * step <= b + 1e-9; i++) at.push(i * step);
  return at;
}

function labelled(axis, n) {  // pairs (position, text)
  return axis.ticks ?? ticks(axis.range, n).map(v => [v, number(v, axis.format)]);
}

function grid(c, X, Y, w, h) {  // lines, numbers and names of both axes
  let found = "";
  for (const [v, text] of labelled(c.x, w / 60)) {
    if (!c.x.ticks) found += `<path class="grid" d="M${px(X(v))} 0V${h}"/>`;
    found += `<text x="${px(X(v))}" y="${h + 16}" text-anchor="middle">${esc(text)}</text>`;
  }
  for (const [v, text] of labelled(c.y, h / 40)) {
    found += `<path class="grid" d="M0 ${px(Y(v))}H${w}"/>`;
    found += `<text x="-7" y="${px(Y(v) + 4)}" text-anchor="end">${esc(text)}</text>`;
  }
  const below = `x="${w / 2}" y="${h + 34}"`;
  const left = `transform="translate(-45 ${h / 2})rotate(-90)"`;
  found += `<text class="axis" ${below} text-anchor="middle">${esc(c.x.label)}</text>`;
  return found + `<text class="axis" ${left} text-anchor="middle">${esc(c.y.label)}</text>`;
}

function key(m) {  // a mark as the legend shows it
  const color = paint(m.color);
  if (m.kind === "points") return `<path d="${outline(m.symbol, 14, 6, 5)}" fill="${color}"/>`;
  if (m.kind === "bars") {
    const one = {...m, x0: [3], x1: [25], y: [1], base: [0]};
    return MARKS.bars(one, x => x, y => 11 - 10 * y);
  }
  const width = Math.max(2, m.width ?? 2.5);
  return `<path d="M1 6H27" stroke="${color}" stroke-width="${width}" ${dashes(m.dash)}/>`;
}

function legend(marks) {
  const svg = m => `<svg width="28" height="12" aria-hidden="true">${key(m)}</svg>`;
  const items = marks.filter(m => m.name).map(m => `<span>${svg(m)}${esc(m.name)}</span>`);
  return items.length ? `<div class="legend">${items.join("")}</div>` : "";
}

function chart(c, width) {
  const bare = c.axes === false, height = c.height ?? 230;
  const [left, right, top, bottom] = bare ? [12, 16, 8, 4] : [58, 16, 8, 40];
  const w = width - left - right, h = height - top - bottom;
  const [x0, x1] = c.x.range, [y0, y1] = c.y.range;
  const X = v => (v - x0) / (x1 - x0) * w, Y = v => h - (v - y0) / (y1 - y0) * h;
  const axes = bare ? "" : grid(c, X, Y, w, h);
  const marks = c.marks.map(m => MARKS[m.kind](m, X, Y, w, h)).join("");
  const size = `width="${w + 12}" height="${h + 12}" viewBox="-6 -6 ${w + 12} ${h + 12}"`;
  const inside = `<svg x="-6" y="-6" ${size} overflow="hidden">${marks}</svg>`;
  const label = `role="img" aria-label="${esc(c.alt ?? c.title)}"`;
  return `<figure><figcaption>${esc(c.title)}</figcaption>${legend(c.marks)}` +
    `<svg ${label} width="${width}" height="${height}">` +
    `<g transform="translate(${left} ${top})">${axes}${inside}</g></svg></figure>`;
}

// ---- other blocks: block -> HTML ------------------------------------------------------------

const BLOCKS = {
  chart,

  numbers(b) {
    const noted = b.items.some(i => i.note), note = i => `<small>${esc(i.note ?? "")}</small>`;
    const item = i => `<span>${esc(i.label)}</span> <b>${esc(i.value)}</b> ${noted ? note(i) : ""}`;
    return `<div class="numbers">${b.items.map(i => `<div>${item(i)}</div>`).join("")}</div>`;
  },

  text: b => b.alert
    ? `<p class="alert" role="alert">${esc(b.text)}</p>`
    : `<p class="prose">${esc(b.text)}</p>`,

  code(b) {
    const label = 'tabindex="0" aria-label="Python that reproduces this"';
    return `<pre ${KEYS} class="code" ${label}><code>${esc(b.text)}</code></pre>`;
  },

  table(b) {
    const head = b.columns.map(c => `<th scope="col">${esc(c)}</th>`).join("");
    const row = cells => `<tr>${cells.map(c => `<td>${esc(c)}</td>`).join("")}</tr>`;
    const body = `<tr>${head}</tr>${b.rows.map(row).join("")}`;
    return `<div class="scroll"><table><caption>${esc(b.title)}</caption>${body}</table></div>`;
  },

  tokens(b) {
    const all = b.tokens.map((t, i) => token(t, i, i === b.selected)).join("");
    return `<div class="tokens" role="listbox" aria-label="${esc(b.label)}">${all}</div>`;
  },
};

function token(t, i, selected) {  // one token as a button, shaded by its level in [0, 1]
  const shade = `color-mix(in srgb, #D55E00 ${Math.round(100 * t.level)}%, var(--bg))`;
  const style = `background:${shade}${t.level > 0.55 ? ";color:#fff" : ""}`;
  const role = `role="option" aria-selected="${selected}" tabindex="${selected ? 0 : -1}"`;
  const data = `data-token="${i}" title="${esc(t.title)}"`;
  return `<button ${KEYS} type="button" ${role} ${data} style="${style}">${esc(t.text)}</button>`;
}

// ---- controls: control -> HTML --------------------------------------------------------------

// Of any kind: `help`, a sentence below it; `fold`, what it is folded under; `when`, the values of
// another control under which it does something; `guide`, its place among those to touch in turn.

const literalValue = v => `value="${esc(JSON.stringify(v))}"`;
const option = ([v, text]) => `<option ${literalValue(v)}>${esc(text)}</option>`;

function box(c, text, more = "") {  // a box to tick, with its text
  const input = `<input ${KEYS} type="checkbox" data-name="${c.name}" ${more}>`;
  return `<label class="check">${input}<span>${esc(text)}</span></label>`;
}

const CONTROLS = {
  range(c) {
    const ends = `min="${c.min}" max="${c.max}" step="${c.step}"`;
    const input = `<input ${KEYS} type="range" data-name="${c.name}" ${ends}>`;
    return `<label class="range"><span>${esc(c.label)}</span>${input}<output></output></label>`;
  },

  select(c) {
    const menu = `<select ${KEYS} data-name="${c.name}">${c.options.map(option).join("")}</select>`;
    return `<label class="select"><span>${esc(c.label)}</span>${menu}</label>`;
  },

  checkbox: c => box(c, c.label),

  checks(c) {
    const boxes = c.options.map(([v, text]) => box(c, text, literalValue(v))).join("");
    return `<fieldset><legend>${esc(c.label)}</legend>${boxes}</fieldset>`;
  },

  buttons(c) {
    const all = c.items.map((b, i) => {
      const data = `data-group="${c.name}" data-item="${i}"`;
      return `<button ${KEYS} type="button" ${data}>${esc(b.label)}</button>`;
    });
    return `<div class="buttons" role="group" aria-label="${esc(c.label)}">${all.join("")}</div>`;
  },
};

function placed(c, values) {  // a control in the page, with its sentence
  const hidden = c.when && !Object.entries(c.when).every(([k, vs]) => vs.includes(values[k]));
  const help = c.help ? `<small class="help">${esc(c.help)}</small>` : "";
  const place = `data-place="${c.name}" ${hidden ? "hidden" : ""}`;
  const long = c.name === "d" || (c.type === "select" && c.options.some(o => o[1].length > 24));
  const wide = c.type === "buttons" || c.type === "checks" ? "wide" : long ? "broad" : "";
  return `<div class="control ${wide}" ${place}>${CONTROLS[c.type](c)}${help}</div>`;
}

function allPlaced(list, values, open) {  // those that are folded come last, under their names
  const plain = list.filter(c => !c.fold).map(c => placed(c, values)).join("");
  const folds = [...new Set(list.map(c => c.fold).filter(Boolean))].map(name => {
    const inside = list.filter(c => c.fold === name).map(c => placed(c, values)).join("");
    const state = open.includes(name) ? "open" : "";
    const summary = `<summary ${KEYS}>${esc(name)}</summary>`;
    return `<details data-fold="${esc(name)}" ${state}>${summary}<div>${inside}</div></details>`;
  });
  return plain + folds.join("");
}

function show(root, controls, values) {  // write the values into the controls
  for (const c of controls) for (const input of root.querySelectorAll(`[data-name="${c.name}"]`)) {
    const v = values[c.name] ?? c.value;  // a control may be here before its value
    if (c.type === "checks") input.checked = v.includes(JSON.parse(input.value));
    else if (c.type === "checkbox") input.checked = v;
    else if (c.type === "select") input.value = JSON.stringify(v);
    else {
      if (+input.value !== v) input.value = v;  // not into the slider that is being moved
      const text = number(v) + (c.unit ? " " + c.unit : "");
      input.setAttribute("aria-valuetext", text);
      input.nextElementSibling.textContent = text;
    }
  }
}

function read(root, c, input) {  // the value that a control shows
  if (c.type === "checkbox") return input.checked;
  if (c.type === "select") return JSON.parse(input.value);
  if (c.type === "range") return +input.value;
  const ticked = root.querySelectorAll(`[data-name="${c.name}"]:checked`);
  return [...ticked].map(i => JSON.parse(i.value));
}

// ---- what is computed in the browser --------------------------------------------------------

const floats = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);

// (data, values, blocks as Python made them for the first values) -> blocks for these values.
const COMPUTE = {
  // The budget panel; panel.BudgetPanel._blocks is the same in Python, and tests compare the two.
  budget(data, v, blocks) {
    const t = nearest(data.traces, v), line = {x: v.d, label: `d = ${v.d}`};
    const [inside, over] = histogram(t, v.d, data), [reaches, breaks] = fan(t, v.d, data);
    const bars = [{y: inside}, {y: over, base: inside}, line];
    const dots = [{}, ...rewards(t, v, data), line];
    const said = t.about + instead(t, v.trained);
    const fill = [rates(t, v.d, data.ci), null, bars, [reaches, breaks, {}], dots];
    const filled = (list, more) => list.map((m, j) => ({...m, ...more[j]}));
    return blocks.map((b, i) => {
      if (b.items) return {...b, items: filled(b.items, fill[i])};
      return b.marks ? {...b, marks: filled(b.marks, fill[i])} : {...b, text: said};
    });
  },
};

function nearest(traces, v) {  // the trace that is shown, unpacked
  const mine = traces.filter(t => t.label === v.method && (t.seed ?? v.seed) === v.seed);
  const aim = v.trained === "nearest" ? v.d : v.trained;
  const away = t => Math.abs((t.budget ?? aim) - aim);
  const found = mine.reduce((best, t) => away(t) < away(best) - 1e-9 ? t : best);
  for (const k of ["spent", "reward", "correct", "running"])
    if (typeof found[k] === "string") found[k] = floats(found[k]);
  return found;
}

function instead(t, trained) {  // as panel.instead
  if ([undefined, null, "nearest", t.budget].includes(trained)) return "";
  if (t.budget == null) return ". This method reads no budget";
  return `. There is none that was trained for d = ${short(trained)}`;
}

function rates(t, d, intervals) {  // the numbers under the limit d
  const n = t.spent.length;
  let within = 0, judged = 0, right = 0, both = 0, total = 0;
  for (let i = 0; i < n; i++) {
    const ok = t.spent[i] <= d;
    within += ok; total += t.spent[i];
    if (Number.isNaN(t.correct[i])) continue;
    judged += 1; right += t.correct[i]; both += ok * t.correct[i];
  }
  const rate = (k, n) => {
    const [low, high] = intervals[n];
    return {value: percent(k / n), note: `95%: ${percent(low[k])} to ${percent(high[k])}`};
  };
  const rows = [rate(within, n), rate(right, judged), rate(both, judged)];
  return [...rows, {value: (total / n).toFixed(3)}];
}

function histogram(t, d, {top, bins}) {  // shares inside and over the limit
  const found = [Array(bins).fill(0), Array(bins).fill(0)];
  for (const s of t.spent) {
    const at = Math.max(0, Math.min(bins - 1, Math.floor(s / (top / bins))));
    found[s <= d ? 0 : 1][at] += 1 / t.spent.length;
  }
  return found;
}

function fan(t, d, {top, T}) {  // remaining budget of those that stay inside, and of the others
  const found = [{x: [], y: []}, {x: [], y: []}];
  for (let k = 0; k * T < t.running.length; k++) {
    const {x, y} = found[t.spent[k] <= d ? 0 : 1];
    x.push(0); y.push(d);
    for (let j = 0; j < T && !Number.isNaN(t.running[k * T + j]); j++) {
      x.push(j + 1);
      y.push(Math.max(Math.min(d - t.running[k * T + j], d), -top));
    }
    x.push(null); y.push(null);
  }
  return found;
}

function rewards(t, {d, n}, {top, low, points}) {  // modified rewards, inside and over
  const found = [{x: [], y: []}, {x: [], y: []}];
  for (let i = 0; i < Math.min(points, t.spent.length); i++) {
    if (Number.isNaN(t.reward[i])) continue;
    const s = t.spent[i], ok = s <= d, {x, y} = found[ok ? 0 : 1];
    x.push(Math.min(s, top));
    y.push(Math.max(ok ? t.reward[i] : -(n + s), low));
  }
  return found;
}

// ---- the view -------------------------------------------------------------------------------

function literal(v) {  // as Python writes it
  if (v === true) return "True";
  if (v === false) return "False";
  return v === null ? "None" : JSON.stringify(v).replace(/,(?=["\d])/g, ", ");
}

function python(model) {  // the line that makes this widget as it stands
  const values = Object.entries(model.get("values")).map(([k, v]) => `${k}=${literal(v)}`);
  return `${model.get("name")}(${[model.get("given"), ...values].filter(Boolean).join(", ")})`;
}

function layout(blocks, wide) {  // columns that fit, and for every block how many it spans
  const charts = blocks.filter(b => b.type === "chart").length;
  const need = Math.max(278, ...blocks.map(b => b.min ?? 0));  // a chart may ask for more
  const fit = Math.floor((wide + 12) / (need + 12)), columns = Math.max(1, Math.min(charts, fit));
  const width = Math.floor((wide - 12 * (columns - 1)) / columns);
  let left = charts;
  const spans = blocks.map(b => {
    const alone = b.type === "chart" && --left === 0 && charts % columns === 1;
    return Math.min(alone ? columns : b.span ?? 1, columns);  // the last picture fills its row
  });
  return {columns, spans, widths: spans.map(span => width * span + 12 * (span - 1))};
}

function render({model, el}) {
  const root = document.createElement("div");
  root.className = "cmdp";
  root.innerHTML = `<div class="head"></div><div class="body"></div>`;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", model.get("name"));
  el.append(root);
  const head = root.firstChild, body = root.lastChild;
  const compute = COMPUTE[model.get("compute")], data = model.get("data");
  let slots = [], shown = "", busy = false;
  const touched = new Set();

  const values = () => model.get("values");
  function focused(part) {  // what the element under the keys is called, if it is in this part
    const active = document.activeElement;
    return part.contains(active) ? active.dataset : {};
  }

  function blocks() {
    const sent = model.get("blocks"), found = compute ? compute(data, values(), sent) : sent;
    return model.get("name") ? [...found, {type: "code", text: python(model)}] : found;
  }

  function draw() {
    const all = blocks(), focus = focused(root).token;
    const {columns, spans, widths} = layout(all, Math.max(300, (root.clientWidth || 900) - 16));
    body.style.setProperty("--columns", columns);
    if (slots.length !== all.length) {
      body.innerHTML = all.map(b => `<div class="block is-${b.type}"></div>`).join("");
      slots = all.map(() => "");
    }
    all.forEach((b, i) => {
      const html = BLOCKS[b.type](b, widths[i]), slot = body.children[i];
      if (html === slots[i]) return;
      slot.className = `block is-${b.type}`;
      slot.setAttribute("aria-live", b.type === "numbers" || b.alert ? "polite" : "off");
      slot.style.gridColumn = b.type === "chart" ? `span ${spans[i]}` : "";
      slot.innerHTML = slots[i] = html;
    });
    if (focus !== undefined) body.querySelector('[data-token][tabindex="0"]')?.focus();
    root.dataset.values = JSON.stringify(values());
  }

  function controls() {
    const list = model.get("controls"), text = JSON.stringify(list);
    if (text !== shown) {
      const active = focused(head).name;
      const open = [...head.querySelectorAll("details[open]")].map(e => e.dataset.fold);
      shown = text;
      head.innerHTML = allPlaced(list, values(), open);
      if (active) head.querySelector(`[data-name="${active}"]`)?.focus();
    }
    for (const c of list.filter(c => c.when)) {
      const does = Object.entries(c.when).every(([k, vs]) => vs.includes(values()[k]));
      head.querySelector(`[data-place="${c.name}"]`).hidden = !does;
    }
    show(head, list, values());
    guide(list);
  }

  function guide(list) {  // the next control to touch stands out until it was touched
    const left = list.filter(c => c.guide && !touched.has(c.name));
    left.sort((a, b) => a.guide - b.guide);
    for (const c of list.filter(c => c.guide)) {
      const place = head.querySelector(`[data-place="${c.name}"]`);
      place.classList.toggle("next", c === left[0]);
    }
  }

  function touch(name) {
    touched.add(name);
    guide(model.get("controls"));
  }

  function change(changes) {
    const began = performance.now();
    model.set("values", {...values(), ...changes});
    controls();
    if (compute) {
      draw();
      body.getBoundingClientRect();
      (root.cmdpTimes ??= []).push(performance.now() - began);
    }
    model.save_changes();
  }

  head.addEventListener("input", e => {
    const c = model.get("controls").find(c => c.name === e.target.dataset.name);
    if (!c) return;
    touched.add(c.name);
    change({[c.name]: read(head, c, e.target)});
  });
  head.addEventListener("click", e => {
    const {group, item} = e.target.dataset;
    if (group) touch(group);
    const button = model.get("controls").find(c => c.name === group)?.items[item];
    if (button?.set) change(button.set);
    else if (button) model.send({press: button.press});
  });

  const choose = i => { if (i !== undefined && +i !== values().token) change({token: +i}); };
  body.addEventListener("pointermove", e => {  // a redraw under a resting pointer is no choice
    if (e.movementX || e.movementY) choose(e.target.dataset?.token);
  });
  body.addEventListener("focusin", e => choose(e.target.dataset?.token));
  body.addEventListener("keydown", e => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[e.key];
    const to = step && body.querySelector(`[data-token="${+e.target.dataset.token + step}"]`);
    if (to) { e.preventDefault(); to.focus(); }
  });

  function redraw() {  // once for all that changed at a time
    if (busy) return;
    busy = true;
    queueMicrotask(() => { busy = false; controls(); draw(); });
  }
  for (const name of ["values", "controls", "blocks"]) model.on(`change:${name}`, redraw);
  controls();
  draw();
  let seen = root.clientWidth;
  const watch = new ResizeObserver(() => {
    if (!root.clientWidth || root.clientWidth === seen) return;
    seen = root.clientWidth;
    draw();
  });
  watch.observe(root);
  root.cmdpBlocks = blocks;
  return () => watch.disconnect();
}

export default {render};
