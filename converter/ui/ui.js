"use strict";
// The page of `convert ui`. Text of files goes to the page as text only: nothing here makes HTML of it.
(() => {
  // ------------------------------------------------------------------------------------------------ elements

  const $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
    return element;
  }

  const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

  // ------------------------------------------------------------------------------------------------ words

  const digits = (value) => String(Number(Number(value).toPrecision(3)));

  function scaled(value, units) {
    let at = 0;
    while (value >= 999.5 && at < units.length - 1) { value /= 1000; at += 1; }
    const places = at === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
    return `${value.toFixed(places)} ${units[at]}`.trim();
  }

  const bytes = (value) => scaled(value, ["B", "kB", "MB", "GB", "TB"]);
  const count = (value) => scaled(value, ["", "k", "M", "B"]);
  const whole = (value) => Number(value).toLocaleString("en");
  const percent = (value) => (value > 0 && value < 1e-4 ? "< 0.01 %" : `${value < 0.01 ? digits(100 * value) : (100 * value).toFixed(1)} %`);
  const shape = (sides) => sides.join(" × ") || "scalar";
  const plural = (number, word) => `${whole(number)} ${word}${number === 1 ? "" : "s"}`;

  function seconds(value) {
    const total = Math.round(value);
    if (total < 60) return `${total} s`;
    if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`;
    return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  }

  const duration = (value) => (value < 1 ? "under 1 s" : seconds(value));

  // `8GiB`, `5.5GB`, `500M` in bytes; null for nothing, NaN for what is none.
  function size(text) {
    if (!text.trim()) return null;
    const found = /^([\d.]+)\s*([KMGT])(i?)B?$/i.exec(text.trim());
    return found ? Number(found[1]) * (found[3] ? 1024 : 1000) ** ("KMGT".indexOf(found[2].toUpperCase()) + 1) : NaN;
  }

  // ------------------------------------------------------------------------------------------------ the server

  async function ask(name, values = {}, post = false) {
    let answer, found;
    try {
      answer = post
        ? await fetch(name, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values) })
        : await fetch(`${name}?${new URLSearchParams(values)}`);
      found = await answer.json();
    } catch {
      throw new Error("The server is gone. Start `convert ui` again.");
    }
    if (!answer.ok) throw new Error(found.error.message);
    return found;
  }

  function trouble(error) {
    $("trouble").textContent = error ? error.message : "";
    $("trouble").hidden = !error;
  }

  // Runs what may fail; its error is shown at the top, the next success takes it away.
  const tried = (work) => async (...given) => {
    try {
      const made = await work(...given);
      trouble(null);
      return made;
    } catch (error) {
      trouble(error);
    }
  };

  const state = { about: null, model: null, overrides: [], planned: null };

  // ------------------------------------------------------------------------------------------------ parts of pages

  function table(head, rows, left = 1) {
    const cell = (tag, value, at) => h(tag, { class: `${tag === "th" ? "plain " : ""}${at < left ? "left" : ""}` }, value);
    return h("div", { class: "table" }, h("table", {},
      h("thead", {}, h("tr", {}, head.map((value, at) => cell("th", value, at)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((value, at) => cell("td", value, at)))))));
  }

  const cards = (rows) => h("dl", { class: "facts" }, rows.map(([label, value, kind]) =>
    h("div", {}, h("dt", {}, label), h("dd", { class: kind }, value))));

  function commandLine(text) {
    const code = h("code", {}, text);
    const button = h("button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {  // not allowed here: selected, so that a key copies it
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    return h("div", { class: "command" }, code, button);
  }

  const section = (title, about, ...content) => h("section", {}, h("h2", {}, title), about ? h("p", {}, about) : null, content);

  // ------------------------------------------------------------------------------------------------ colours

  const PLAIN = { F64: "#5d6b78", F32: "#8a97a3", F16: "#aab4bd", BF16: "#b9c2ca" };
  const PALETTE = ["#2f7ed8", "#009e73", "#e69f00", "#9b6dd0", "#d55e6a", "#56b4e9", "#b5a42e", "#c774a8", "#8c6d4f", "#3fb6a8"];

  // Types that are there, the widest first; plain ones are grey, so that blocks stand out.
  function colours(types) {
    const bits = (name) => state.about.bits[name] ?? 0;
    const coded = types.filter((name) => !(name in PLAIN)).sort((a, b) => bits(b) - bits(a) || (a < b ? -1 : 1));
    const made = new Map(coded.map((name, at) => [name, PALETTE[at % PALETTE.length]]));
    return (name) => PLAIN[name] ?? made.get(name) ?? "#8a97a3";
  }

  // From 0.01 % of the values (yellow) to a third (red), by powers of ten.
  function heat(relative) {
    const share = Math.min(1, Math.max(0, (Math.log10(Math.max(relative, 1e-9)) + 4) / 3.5));
    return `hsl(${Math.round(52 - 52 * share)} 85% ${Math.round(58 - 8 * share)}%)`;
  }

  // ------------------------------------------------------------------------------------------------ the tree

  const MOST = 800, FOUND = 300;  // children of a module, and tensors found, that are shown

  class Tree {
    // `dot(node)` is a colour or null, `chosen(node)` is called for a tensor.
    constructor(place, root, label, dot, chosen) {
      this.root = root;
      this.dot = dot;
      this.chosen = chosen;
      this.box = h("div", { class: "tree", role: "tree", "aria-label": label, onkeydown: (event) => this.key(event) });
      this.branch(this.box, root, 1);
      place.replaceChildren(this.box);
      this.box.querySelector(".node")?.setAttribute("tabindex", "0");
    }

    branch(box, node, level) {
      for (const child of node.children.slice(0, MOST)) this.row(box, child, level);
      const more = node.children.length - MOST;
      if (more > 0) box.append(h("p", { class: "note" }, `${whole(more)} more; the filter finds them`));
    }

    row(box, node, level) {
      const inner = node.children.length > 0;
      const share = node.bytes / Math.max(1, this.root.bytes);
      const colour = this.dot(node);
      const row = h("div",
        {
          class: "node", role: "treeitem", tabindex: -1, "aria-level": level, "aria-expanded": inner ? "false" : null,
          style: { "padding-left": `${(level - 1) * 14}px` },
          title: `${node.name}: ${count(node.parameters)} parameters, ${bytes(node.bytes)}, ${percent(share)}, ${Object.keys(node.types).join(", ")}`,
        },
        h("span", { class: "name" },
          colour ? h("i", { class: "dot", style: { background: colour } }) : null,
          node.name.replace(/\.weight$/, ""), node.count > 1 ? h("small", {}, `${node.count} ×`) : null),
        h("span", { class: "bar" }, h("i", { style: { width: `${Math.max(100 * share, share ? 2 : 0)}%` } })),
        h("span", { class: "size" }, bytes(node.bytes)));
      const below = h("div", { role: "group", hidden: true });
      row.toggle = (open = below.hidden) => {
        if (!inner) return;
        if (!below.childElementCount) this.branch(below, node, level + 1);
        below.hidden = !open;
        row.setAttribute("aria-expanded", String(open));
      };
      row.choose = () => (inner ? row.toggle() : this.chosen(node, row));
      row.addEventListener("click", () => { this.focus(row, false); row.choose(); });
      box.append(row, below);
      if (inner && level < 3 && node.children.length < 40) row.toggle(true);
    }

    rows() {
      return [...this.box.querySelectorAll(".node")].filter((row) => !row.closest("[hidden]"));
    }

    focus(row, move = true) {
      this.box.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
      row.setAttribute("tabindex", "0");
      if (move) row.focus();
    }

    select(row) {
      for (const other of document.querySelectorAll(".node[aria-selected]")) other.removeAttribute("aria-selected");
      row?.setAttribute("aria-selected", "true");
    }

    key(event) {
      const row = event.target.closest(".node");
      if (!row) return;
      const rows = this.rows(), at = rows.indexOf(row);
      const open = row.getAttribute("aria-expanded");
      const parent = row.parentElement.previousElementSibling;
      const moves = {
        ArrowDown: () => this.focus(rows[Math.min(at + 1, rows.length - 1)]),
        ArrowUp: () => this.focus(rows[Math.max(at - 1, 0)]),
        Home: () => this.focus(rows[0]),
        End: () => this.focus(rows.at(-1)),
        ArrowRight: () => (open === "false" ? row.toggle(true) : open && this.focus(rows[at + 1] ?? row)),
        ArrowLeft: () => (open === "true" ? row.toggle(false) : parent?.matches(".node") && this.focus(parent)),
        Enter: () => row.choose(),
        " ": () => row.choose(),
      };
      if (!(event.key in moves)) return;
      event.preventDefault();
      moves[event.key]();
    }
  }

  // ------------------------------------------------------------------------------------------------ the grid

  // Layers by parts of a layer. `items` are { name, layer, module }, `colour(item)` paints a cell, `told(item)` says more.
  class Grid {
    constructor(place, items, colour, told) {
      this.told = told;
      this.lines = new Map();
      const layers = [...new Set(items.map((item) => item.layer).filter((layer) => layer !== null))].sort((a, b) => a - b);
      const columns = new Map(layers.map((layer, at) => [layer, at]));
      for (const item of items) {
        const line = this.line(item.layer === null ? item.name : item.module, item.layer === null ? 1 : layers.length);
        (line[item.layer === null ? 0 : columns.get(item.layer)] ??= []).push(item);
      }
      this.box = h("div", { class: `grid${layers.length > 64 ? " fine" : ""}`, role: "grid", tabindex: 0, "aria-label": "Tensors by layer and part" });
      const lines = [...this.lines], inLayers = lines.filter(([, cells]) => cells.wide > 1);
      if (layers.length > 1) this.box.append(this.ticks(layers));
      this.cells = [...inLayers, ...lines.filter((each) => !inLayers.includes(each))].map(([label, cells]) =>
        this.drawn(label, cells, colour));
      this.box.addEventListener("keydown", (event) => this.key(event));
      this.box.addEventListener("pointerover", (event) => event.target.items && !this.held && this.told(event.target.items, false));
      this.box.addEventListener("click", (event) => event.target.items && this.hold(event.target));
      this.box.addEventListener("focus", () => this.at ?? this.move(0, 0));
      place.replaceChildren(h("div", { class: "scroll" }, this.box));
    }

    line(label, wide) {
      if (!this.lines.has(label)) this.lines.set(label, Object.assign(new Array(wide).fill(null), { wide }));
      return this.lines.get(label);
    }

    template(wide) {
      return wide > 1 ? `var(--label) repeat(${wide}, minmax(${wide > 64 ? 4 : 7}px, 26px))` : "var(--label) 60px";
    }

    ticks(layers) {
      const step = Math.max(1, Math.ceil(layers.length / 8));
      return h("div", { class: "line ticks", "aria-hidden": "true", style: { "grid-template-columns": this.template(layers.length) } },
        h("span", { class: "label" }, "layer"), layers.map((layer, at) => h("span", {}, at % step ? "" : String(layer))));
    }

    drawn(label, cells, colour) {
      const made = [...cells].map((items) => {
        const cell = h("span", {
          class: `cell${items ? "" : " none"}${cells.wide > 1 ? "" : " wide"}`, role: "gridcell",
          style: items ? { background: colour(items[0]) } : {},
          "aria-label": items ? items[0].name : null,
        });
        cell.items = items;
        return cell;
      });
      this.box.append(h("div", { class: "line", role: "row", style: { "grid-template-columns": this.template(cells.wide) } },
        h("span", { class: "label", title: label }, label.replace(/\.weight$/, "")), made));
      return made;
    }

    move(row, column) {
      const line = this.cells[Math.min(Math.max(row, 0), this.cells.length - 1)];
      if (!line) return;
      this.at?.cell.classList.remove("at");
      const y = this.cells.indexOf(line), x = Math.min(Math.max(column, 0), line.length - 1);
      this.at = { row: y, column: x, cell: line[x] };
      line[x].classList.add("at");
      line[x].scrollIntoView({ block: "nearest", inline: "nearest" });
      if (line[x].items) this.told(line[x].items, false);
    }

    hold(cell) {
      const row = this.cells.findIndex((line) => line.includes(cell));
      this.move(row, this.cells[row].indexOf(cell));
      this.held = true;
      this.told(cell.items, true);
    }

    key(event) {
      if (!this.at) this.move(0, 0);
      if (!this.at) return;
      const { row, column, cell } = this.at;
      const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
      if (event.key in moves) {
        this.held = false;
        this.move(row + moves[event.key][0], column + moves[event.key][1]);
      } else if (event.key === "Enter" && cell.items) this.hold(cell);
      else return;
      event.preventDefault();
    }
  }

  // ------------------------------------------------------------------------------------------------ files

  const choosing = { done: null };

  const showFolder = tried(async (path) => {
    const found = await ask("files", { path });
    $("folder").textContent = found.path;
    const open = (entry) => () => { $("files").close(); choosing.done(entry.path); };
    $("whole").onclick = () => { $("files").close(); choosing.done(found.path); };
    $("entries").replaceChildren(
      ...(found.up ? [h("li", {}, h("button", { type: "button", onclick: () => showFolder(found.up) }, ".."))] : []),
      ...found.entries.map((entry) => h("li", {},
        h("button", { type: "button", onclick: entry.model ? open(entry) : () => showFolder(entry.path) },
          entry.folder ? `${entry.name}/` : entry.name, h("small", {}, entry.folder ? (entry.model ? "model" : "") : bytes(entry.bytes))),
        entry.folder && entry.model ? h("button", { type: "button", onclick: () => showFolder(entry.path) }, "look inside") : null)),
      ...(found.entries.length ? [] : [h("li", { class: "note" }, "No models here.")]));
  });

  async function choose(done) {
    choosing.done = done;
    await showFolder(state.about.read);
    if (!$("files").open) $("files").showModal();
  }

  // ------------------------------------------------------------------------------------------------ the model

  const openModel = tried(async (path) => {
    const model = await ask("model", { path });
    state.model = model;
    state.planned = null;
    state.overrides = [];
    document.title = `${model.name} - convert`;
    $("path").textContent = model.path;
    const bits = model.parameters ? (8 * model.bytes) / model.parameters : 0;
    $("facts").textContent = [model.architecture ?? model.format, count(model.parameters), bytes(model.bytes),
      `${bits.toFixed(2)} bits`, plural(model.tensors.length, "tensor")].join("  ·  ");
    $("again").hidden = !model.tensors.some((row) => !(row[2] in PLAIN) && (state.about.bits[row[2]] ?? 8) < 9);
    $("target").value = `${model.name.replace(/\.(gguf|safetensors|bin|pt|pth|onnx)$/, "")}.gguf`;
    $("imatrix").value = "";
    named();
    $("tensor").hidden = true;
    for (const id of ["planned", "grid", "cell", "costs", "curve", "made", "proof", "differences", "chips"]) $(id).replaceChildren();
    for (const verb of ["compare", "convert", "verify", "diff"]) $(`${verb}-job`).replaceChildren();
    const dots = colours([...new Set(model.tensors.map((row) => row[2]))]);
    state.tree = new Tree($("tree"), model.tree, "Tensors", (node) => (node.children.length ? null : dots(Object.keys(node.types)[0])),
      (node, row) => { state.tree.select(row); showTensor(node.tensors); });
    filter();
    overview(model);
    document.documentElement.setAttribute("data-opened", model.path);
    performance.mark("opened");
    await plan();
    await resume();
  });

  function overview(model) {
    const memory = (title, { assumes, table: [head, rows] }) =>
      rows.length ? section(title, `Estimate: ${assumes.replace("\n", " ")}.`, table(head, rows)) : null;
    $("overview").replaceChildren(...[
      cards([
        ["format", model.format], ["architecture", model.architecture ?? "unknown"], ["parameters", count(model.parameters)],
        ["size", bytes(model.bytes)], ["files", String(model.files)], ["tensors", whole(model.tensors.length)],
      ]),
      model.parts.length ? h("p", { class: "note" }, `In the file: ${model.parts.join(", ")}.`) : null,
      h("div", { class: "columns" }, memory("Memory to run it", model.running), memory("Memory to fine-tune it", model.tuning)),
      section("The same on the command line", null, commandLine(model.command)),
      model.metadata.length ? section("Metadata", null, table(["key", "type", "value"], model.metadata, 3)) : null,
    ].filter(Boolean));
  }

  // A tensor, or one of several layers.
  const showTensor = tried(async (numbers, at = 0) => {
    const rows = numbers.map((number) => state.model.tensors[number]);
    const found = await ask("tensor", { path: state.model.path, name: rows[at][0] });
    const seen = found.sample;
    const step = tried(async (to) => showTensor(numbers, to));
    const layers = rows.length > 1 ? h("div", { class: "layers", role: "group", "aria-label": "Layer" },
      rows.slice(0, 256).map((row, to) => h("button",
        { type: "button", "aria-pressed": String(to === at), onclick: () => step(to), title: row[0] }, String(row[4] ?? to)))) : null;
    $("tensor").replaceChildren(...[
      h("h2", {}, h("code", {}, found.name)), layers,
      cards([
        ["shape", shape(found.shape)], ["type", found.type], ["bits per weight", digits(found.bits)],
        ["size", bytes(found.bytes)], ["of the model", percent(found.share)], ["values", whole(found.elements)],
      ]),
      h("p", { class: "note" }, found.source),
      seen.reason ? h("p", { class: "note" }, `Not looked at: ${seen.reason}.`) : h("div", { class: "columns" },
        h("div", {}, h("h2", {}, "First values"),
          h("p", { class: "values" }, seen.first.map((value) => h("code", {}, value === null ? "not finite" : digits(value))))),
        h("div", {}, h("h2", {}, "Values"), seen.counts ? histogram(seen) : null,
          h("p", { class: "note" }, described(seen)))),
    ].filter(Boolean));
    $("tensor").hidden = false;
    tab("model");
    $("tensor").scrollIntoView({ block: "nearest" });
  });

  function described(seen) {
    const [start, stop] = seen.rows;
    const odd = seen.nonfinite ? `, ${plural(seen.nonfinite, "value")} not finite` : "";
    const zeros = seen.zeros ? `, ${whole(seen.zeros)} zeros` : "";
    const numbers = seen.counts ? `; mean ${digits(seen.mean)}, deviation ${digits(seen.std)}${zeros}` : "";
    return `${whole(seen.looked_at)} values, rows ${whole(start)} to ${whole(stop - 1)}${numbers}${odd}.`;
  }

  function histogram(seen) {
    const [wide, high] = [420, 120], most = Math.max(...seen.counts), bin = wide / seen.counts.length;
    return s("svg", { viewBox: `0 0 ${wide} ${high + 20}`, width: wide, role: "img", "aria-label": `Values from ${digits(seen.min)} to ${digits(seen.max)}` },
      seen.counts.map((number, at) => s("rect", {
        class: "hist", x: at * bin + 0.5, width: Math.max(0.5, bin - 1), y: high - (high * number) / most, height: (high * number) / most,
      })),
      s("line", { class: "axis", x1: 0, x2: wide, y1: high + 0.5, y2: high + 0.5 }),
      s("text", { x: 0, y: high + 16 }, digits(seen.edges[0])),
      s("text", { x: wide, y: high + 16, "text-anchor": "end" }, digits(seen.edges.at(-1))));
  }

  function filter() {
    if (!state.model) return;
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = state.model.tensors;
    state.tree.box.hidden = words.length > 0;
    $("tree").querySelector(".found")?.remove();
    if (!words.length) {
      $("count").textContent = plural(all.length, "tensor");
      return;
    }
    const numbers = all.map((row, number) => number).filter((number) => {
      const text = `${all[number][0]} ${all[number][2]}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    $("count").textContent = `${whole(numbers.length)} of ${plural(all.length, "tensor")}${numbers.length > FOUND ? `, the first ${FOUND}` : ""}`;
    const root = { bytes: state.model.bytes, children: numbers.slice(0, FOUND).map((number) => ({
      name: all[number][0], bytes: all[number][3], parameters: all[number][1].reduce((a, b) => a * b, 1), count: 1,
      types: { [all[number][2]]: 1 }, children: [], tensors: [number],
    })) };
    const place = h("div", { class: "found" });
    const tree = new Tree(place, root, "Tensors found", () => null, (node, row) => { tree.select(row); showTensor(node.tensors); });
    $("tree").append(place);
  }

  // ------------------------------------------------------------------------------------------------ the plan

  function request() {
    const asked = { source: state.model.path, target: $("target").value, tensor_types: state.overrides };
    for (const id of ["quant", "output_type", "embedding_type", "imatrix"]) if ($(id).value) asked[id] = $(id).value;
    for (const id of ["pure", "allow_requantize"]) if ($(id).checked && !$(id).closest("[hidden]:not([role])")) asked[id] = true;
    return asked;
  }

  let turn = 0;
  async function plan() {
    if (!state.model) return;
    const mine = ++turn;
    $("grid").classList.add("stale");
    let found = null, error = null;
    try {
      found = await ask("plan", request(), true);
    } catch (each) {
      error = each;
    }
    if (mine !== turn) return;  // a later question is on its way
    $("grid").classList.remove("stale");
    state.planned = found;
    if (error) {
      $("planned").replaceChildren(h("p", { class: "bad" }, error.message));
      $("convert-command").replaceChildren(h("p", { class: "bad" }, error.message));
      for (const id of ["grid", "cell", "costs"]) $(id).replaceChildren();
      return;
    }
    drawPlan(found);
  }

  let waiting = 0;
  const planSoon = () => { clearTimeout(waiting); waiting = setTimeout(plan, 150); };

  function drawPlan(found) {
    const items = found.steps.map(([name, sides, from, to, nbytes, rule, layer, module]) =>
      ({ name, sides, from, to, nbytes, rule, layer, module }));
    const sums = new Map();
    for (const item of items) sums.set(item.to, (sums.get(item.to) ?? 0) + item.nbytes);
    const types = [...sums].sort((a, b) => b[1] - a[1]);
    const colour = colours(types.map(([name]) => name));
    const all = Math.max(1, types.reduce((sum, [, nbytes]) => sum + nbytes, 0));
    $("planned").replaceChildren(
      h("div", { class: "stack", "aria-hidden": "true" }, types.map(([name, nbytes]) =>
        h("i", { style: { width: `${(100 * nbytes) / all}%`, background: colour(name) } }))),
      h("div", { class: "legend" }, types.map(([name, nbytes]) => h("span", {},
        h("i", { class: "dot", style: { background: colour(name) } }), name, " ", h("small", {}, `${bytes(nbytes)}, ${percent(nbytes / all)}`)))));
    $("cell").replaceChildren(h("p", { class: "note" }, "A cell says here what becomes of its tensor, and by which rule."));
    new Grid($("grid"), items, (item) => colour(item.to), cellTold);
    drawCosts(found);
  }

  function cellTold(items, held) {
    const [item] = items;
    const more = items.length > 1 ? ` and ${plural(items.length - 1, "more tensor")}` : "";
    const told = h("p", {}, h("code", {}, item.name), `${more}  ${shape(item.sides)}  ${item.from} → `, h("b", {}, item.to),
      `  ${bytes(item.nbytes)}`, h("br"), h("span", { class: "note" }, item.rule));
    $("cell").replaceChildren(told, held ? cellForm(item) : "");
  }

  function cellForm(item) {
    const kind = typeSelect(item.to);
    const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const add = (pattern) => () => override(pattern, kind.value);
    return h("div", { class: "form" }, h("label", { class: "check" }, "Make it", kind),
      h("button", { type: "button", onclick: add(`^${escape(item.name)}$`) }, "this tensor"),
      item.layer === null ? null : h("button", { type: "button", onclick: add(`\\.${escape(item.module)}$`) }, "in every layer"));
  }

  const typeSelect = (chosen) => h("select", { "aria-label": "Type" }, state.about.types.map((name) =>
    h("option", { selected: name === chosen }, name)));

  function override(pattern, kind) {
    state.overrides = [[pattern, kind], ...state.overrides.filter(([other]) => other !== pattern)];
    drawChips();
    plan();
  }

  function drawChips() {
    $("chips").replaceChildren(...state.overrides.map(([pattern, kind]) => h("li", {}, h("button", {
      type: "button", "aria-label": `Remove ${pattern}=${kind}`,
      onclick: () => { state.overrides = state.overrides.filter(([other]) => other !== pattern); drawChips(); plan(); },
    }, `${pattern} = ${kind}`))));
  }

  function drawCosts(found) {
    const costs = found.costs;
    const head = ["tokens", "weights", "cache, buffers", "together"];
    const rows = found.running.map((need) =>
      [whole(need.context), bytes(need.weights), bytes(need.cache + need.compute), bytes(need.total)]);
    const [tuneHead, tuneRows] = state.model.tuning.table;
    const losses = found.events.filter((event) => event.loss), notes = found.events.filter((event) => !event.loss);
    $("costs").replaceChildren(...[
      cards([
        ["file", bytes(found.bytes)], ["bits per weight", found.bits_per_weight.toFixed(2)],
        ["of the source", percent(found.bytes / Math.max(1, state.model.bytes))],
        ["disk free", costs.disk_free === null ? "unknown" : bytes(costs.disk_free), costs.fits ? "" : "bad"],
        ["memory", bytes(costs.memory_bytes), costs.tight ? "bad" : ""],
        ["takes at least", duration(costs.seconds)],
      ]),
      costs.fits ? null : h("p", { class: "note bad" }, "The disk has too little room for this file."),
      h("div", { class: "columns" },
        rows.length ? section("Memory to run it", `Estimate: ${state.model.running.assumes}.`, table(head, rows)) : null,
        tuneRows.length ? section("Memory to fine-tune the source", `Estimate: ${state.model.tuning.assumes.replace("\n", " ")}.`,
          table(tuneHead, tuneRows)) : null),
      section("Losses and notes", null, told(losses, "bad"), told(notes, "note"),
        found.left_out ? h("p", { class: "note" }, `${whole(found.left_out)} more.`) : null,
        found.events.length ? null : h("p", {}, "Nothing is lost beyond the rounding to these types.")),
      section("The same on the command line", null, commandLine(found.plan_command), commandLine(found.command)),
    ].filter(Boolean));
    $("convert-command").replaceChildren(commandLine(found.command));
  }

  const told = (events, kind) => events.length ? h("ul", {}, events.slice(0, 12).map((event) => h("li", { class: kind }, event.message)),
    events.length > 12 ? h("li", { class: "note" }, `${whole(events.length - 12)} more`) : null) : null;

  // ------------------------------------------------------------------------------------------------ jobs

  // Watches a job until it ends; gives its result, or null where it was cancelled.
  function watch(job, place) {
    const bar = h("div", { class: "fill" }), words = h("p", { "aria-live": "off" }, "starting");
    const cancel = h("button", { type: "button" }, "Cancel");
    cancel.addEventListener("click", tried(async () => { cancel.disabled = true; await ask("cancel", { number: job.number }, true); }));
    const track = h("div", { class: "track", role: "progressbar", "aria-label": job.verb, "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
    place.replaceChildren(h("div", { class: "job" }, track, words, cancel));
    const events = new EventSource(`events?number=${job.number}`);
    events.onmessage = (event) => {
      const said = JSON.parse(event.data);
      const share = said.total ? said.done / said.total : 0;
      bar.style.setProperty("width", `${100 * share}%`);
      track.setAttribute("aria-valuenow", Math.round(100 * share));
      words.textContent = [`${Math.floor(100 * share)} % of ${bytes(said.total)}`, said.rate ? `${bytes(said.rate)}/s` : null,
        said.left === null ? null : `${seconds(said.left)} left`, said.tensor].filter(Boolean).join("  ·  ");
    };
    return new Promise((done, failed) => {
      events.addEventListener("end", () => {
        events.close();
        place.replaceChildren();
        ask("job", { number: job.number }).then((ended) => {
          if (ended.state === "failed") failed(new Error(ended.result.error.message));
          else if (ended.state === "cancelled") { place.replaceChildren(h("p", { class: "note" }, "Cancelled; nothing was written.")); done(null); }
          else done(ended.result);
        }, failed);
      });
      events.onerror = () => { if (events.readyState === EventSource.CLOSED) failed(new Error("The server is gone. Start `convert ui` again.")); };
    });
  }

  const SHOWN = { compare: drawCurve, convert: drawMade, verify: drawProof, diff: drawDifferences };
  const PLACES = { compare: "curve", convert: "made", verify: "proof", diff: "differences" };

  // Begins a job, or goes on watching one, and shows what comes of it.
  const follow = tried(async (verb, begin) => {
    const buttons = document.querySelectorAll(".main-action");
    $(PLACES[verb]).replaceChildren();
    for (const button of buttons) button.disabled = true;
    try {
      const job = await begin();
      const result = await watch(job, $(`${verb}-job`));
      if (result) SHOWN[verb](result, job.command);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  });

  const start = (verb, asked) => follow(verb, () => ask(verb, asked, true));

  // What was begun on this model before the page was opened: a page that is closed stops nothing.
  async function resume() {
    const { jobs } = await ask("about");
    const own = (job) => (job.asked.source ?? job.asked.before) === state.model.path;
    const latest = new Map(jobs.filter(own).map((job) => [job.verb, job]));
    for (const job of latest.values()) {
      if (job.state === "running") { tab(job.verb); follow(job.verb, async () => job); }
      else if (job.state === "done") SHOWN[job.verb]((await ask("job", { number: job.number })).result);
    }
  }

  // ------------------------------------------------------------------------------------------------ sizes

  function drawCurve(found, line) {
    const draw = () => {
      const limit = size($("limit").value);
      const fitting = found.quants.filter((quant) => limit === null || (quant.memory_to_run ?? quant.bytes) <= limit);
      const best = limit === null || Number.isNaN(limit) ? null
        : fitting.reduce((a, b) => (a && a.nmse <= b.nmse ? a : b), null);
      const verdict = Number.isNaN(limit) ? "The memory is not a size such as 8GiB."
        : limit === null ? null : best ? `${best.name} is the closest that runs in ${$("limit").value}.` : `None runs in ${$("limit").value}.`;
      const row = (quant) => [
        quant.name, bytes(quant.bytes), quant.bits_per_weight.toFixed(2), quant.sqnr_db === null ? "exact" : `${quant.sqnr_db.toFixed(2)} dB`,
        quant.memory_to_run === null ? "" : bytes(quant.memory_to_run), quant.worst_tensor ?? "", quant.beaten_by ? `${quant.beaten_by} is no larger and closer` : "",
        h("button", { type: "button", onclick: () => take(quant.name) }, "Take"),
      ];
      $("curve").replaceChildren(...[
        verdict ? h("p", {}, h("b", {}, verdict)) : null, curve(found.quants, best),
        table(["quant", "size", "bits", "signal over noise", `runs ${whole(found.context)} tokens in`, "worst tensor", "", ""], found.quants.map(row)),
        line ? commandLine(line) : null,
      ].filter(Boolean));
    };
    $("limit").oninput = draw;
    draw();
  }

  function take(name) {
    $("quant").value = name;
    named();
    tab("plan");
    plan();
  }

  // Round numbers between two, some `count` of them.
  function round(low, high, count) {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
    return Array.from({ length: 2 * count + 2 }, (_, at) => (Math.ceil(low / step) + at) * step).filter((value) => value <= high);
  }

  // Size to the right, signal over noise up; what another beats is hollow, the best that fits has a ring.
  function curve(quants, best) {
    const points = quants.filter((quant) => quant.sqnr_db !== null);
    if (!points.length) return null;
    const wide = Math.max(320, Math.min(760, $("curve").clientWidth || 760)), [high, left, bottom] = [300, 46, 34];
    const span = (values) => { const [a, b] = [Math.min(...values), Math.max(...values)]; const pad = (b - a || Math.abs(a) || 1) * 0.1; return [a - pad, b + pad]; };
    const [x0, x1] = span(points.map((quant) => quant.bytes)), [y0, y1] = span(points.map((quant) => quant.sqnr_db));
    const x = (value) => left + ((value - x0) / (x1 - x0)) * (wide - left - 30), y = (value) => high - ((value - y0) / (y1 - y0)) * (high - 20);
    const ticks = round(x0, x1, wide < 500 ? 2 : 5), steps = round(y0, y1, 5);
    const front = points.filter((quant) => !quant.beaten_by).sort((a, b) => a.bytes - b.bytes);
    return s("svg", { viewBox: `0 0 ${wide} ${high + bottom}`, width: wide, role: "img", "aria-label": "Size against signal over noise" },
      steps.map((value) => [s("line", { class: "axis", x1: left, x2: wide, y1: y(value), y2: y(value) }), s("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, `${value.toFixed(0)} dB`)]),
      ticks.map((value) => s("text", { x: x(value), y: high + 20, "text-anchor": "middle" }, bytes(value))),
      s("polyline", { class: "curve", points: front.map((quant) => `${x(quant.bytes)},${y(quant.sqnr_db)}`).join(" ") }),
      best && best.sqnr_db !== null ? s("circle", { class: "ring", cx: x(best.bytes), cy: y(best.sqnr_db), r: 11 }) : null,
      points.map((quant) => {
        const title = s("title", {}, `${quant.name}: ${bytes(quant.bytes)}, ${quant.sqnr_db.toFixed(2)} dB; click takes it`);
        return [
          s("circle", { class: `point${quant.beaten_by ? " beaten" : ""}`, cx: x(quant.bytes), cy: y(quant.sqnr_db), r: 6, onclick: () => take(quant.name) }, title),
          s("text", { class: "name", x: x(quant.bytes) + 10, y: y(quant.sqnr_db) + 16 }, quant.name),
        ];
      }));
  }

  // ------------------------------------------------------------------------------------------------ conversion, proof

  function drawMade(found) {
    $("made").replaceChildren(...[
      h("p", {}, h("b", { class: "good" }, "Written: "), h("code", {}, found.path)),
      cards([["size", bytes(found.bytes)], ["bits per weight", found.bits_per_weight.toFixed(2)], ["tensors", whole(found.tensors)]]),
      told(found.events.filter((event) => event.loss), "bad"),
      h("div", { class: "form" },
        h("button", { type: "button", onclick: () => { $("proved").value = found.path; tab("verify"); prove(); } }, "Prove it"),
        h("button", { type: "button", onclick: () => openModel(found.path) }, "Look at it")),
    ].filter(Boolean));
    $("proved").value = found.path;
  }

  const prove = () => start("verify", { ...request(), target: $("proved").value });

  function drawProof(found, line) {
    const sum = found.summary, findings = [...found.findings].sort((a, b) => b.failed - a.failed);
    const decibels = (each) => (each.exact ? "exact" : each.sqnr_db === null ? "none" : `${each.sqnr_db.toFixed(2)} dB`);
    const rows = found.tensors.map((each) => [h("code", {}, each.name), each.type, decibels(each),
      each.bound ? `${(-10 * Math.log10(each.bound)).toFixed(2)} dB` : "", each.exact ? "0" : digits(each.max_abs),
      each.reproduced === null ? "not tried" : each.reproduced ? "same bytes" : "differs"]);
    $("proof").replaceChildren(...[
      h("p", {}, h("span", { class: `verdict ${found.passed ? "passed" : "failed"}` }, found.passed ? "PASSED" : "FAILED")),
      cards([
        ["tensors", whole(sum.tensors)], ["same bytes", whole(sum.reproduced)], ["exact", whole(sum.exact)],
        ["failed", whole(sum.failed), sum.failed ? "bad" : ""], ["signal over noise", sum.sqnr_db === null ? "exact" : `${sum.sqnr_db.toFixed(2)} dB`],
        ["took", duration(found.seconds)],
      ]),
      findings.length ? h("ul", { class: "findings" }, findings.slice(0, 100).map((each) => h("li", { class: each.failed ? "failed" : null },
        h("b", {}, each.check), h("code", {}, each.subject), ` ${each.message}`, each.hint ? h("small", {}, each.hint) : null))) : null,
      section("Worst tensors first", null, table(["tensor", "type", "signal over noise", "expected, at least", "largest error", "bytes"], rows),
        found.more ? h("p", { class: "note" }, `${whole(found.more)} more; a report has all.`) : null),
      line ? section("The same on the command line, with a report", null, commandLine(line)) : null,
    ].filter(Boolean));
  }

  // ------------------------------------------------------------------------------------------------ differences

  function drawDifferences(found, line) {
    const items = found.tensors.map(([name, sides, type, nbytes, layer, module, gap]) => ({ name, sides, type, nbytes, layer, module, gap }));
    const differing = items.filter((item) => item.gap);
    const colour = (item) => (!item.gap ? "var(--grid)" : item.gap.relative === null || item.gap.relative === undefined ? "var(--bad)" : heat(item.gap.relative));
    const rank = (item) => (!item.gap ? -1 : item.gap.relative ?? Infinity);
    const worst = (node) => node.children.length ? node.children.map(worst).reduce((a, b) => (rank(b) > rank(a) ? b : a))
      : node.tensors.map((number) => items[number]).reduce((a, b) => (rank(b) > rank(a) ? b : a));
    const place = h("div"), box = h("div"), cell = h("p", { class: "cellinfo", "aria-live": "polite" }, "A cell says here what differs.");
    const tell = ([item]) => cell.replaceChildren(h("code", {}, item.name), item.gap ? `  ${item.gap.said.slice(item.name.length + 2)}` : "  is the same",
      item.gap?.relative ? `; ${percent(item.gap.relative)} of the values` : "");
    const list = [...differing].sort((a, b) => rank(b) - rank(a)).slice(0, 50);
    $("differences").replaceChildren(...[
      h("p", {}, h("b", {}, found.equal ? "Nothing differs." : `${plural(differing.length, "tensor")} of ${whole(items.length)} and ${plural(found.others.length + found.left_out, "other entry").replace("entrys", "entries")} differ.`)),
      items.length ? legend() : null, box, items.length ? cell : null,
      differing.length ? h("div", { class: "columns" },
        section("As a tree", null, place),
        section("Farthest first", null, table(["tensor", "relative error"], list.map((item) =>
          [h("code", {}, item.name), item.gap.relative ? percent(item.gap.relative) : item.gap.kind])))) : null,
      found.others.length ? section("Metadata and files", null, table(["entry", "before", "after"], found.others.slice(0, 200).map((each) =>
        [each.name, each.before ?? "", [each.after, each.detail].filter(Boolean).join("; ")]), 3)) : null,
      line ? section("The same on the command line", null, commandLine(line)) : null,
    ].filter(Boolean));
    if (items.length) new Grid(box, items, colour, tell);
    if (differing.length) new Tree(place, found.tree, "Tensors that were compared", (node) => colour(worst(node)), (node) => tell([worst(node)]));
  }

  const legend = () => h("div", { class: "legend" }, [["the same", "var(--grid)"], ["0.01 %", heat(1e-4)], ["0.1 %", heat(1e-3)], ["1 %", heat(1e-2)],
    ["10 %", heat(1e-1)], ["on one side only, or of another shape", "var(--bad)"]].map(([label, colour]) => h("span", {}, h("i", { class: "dot", style: { background: colour } }), label)));

  // ------------------------------------------------------------------------------------------------ tabs and forms

  const tabs = [...document.querySelectorAll("[role=tab]")];

  function tab(name, move = false) {
    for (const each of tabs) {
      const mine = each.id === `tab-${name}`;
      each.setAttribute("aria-selected", String(mine));
      each.tabIndex = mine ? 0 : -1;
      $(each.getAttribute("aria-controls")).hidden = !mine;
      if (mine && move) each.focus();
      if (mine) each.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
    history.replaceState(null, "", `#${name}`);
  }

  function named() {
    const quant = $("quant").value.toUpperCase();
    const known = state.about.quants.map((each) => each.quant).sort((a, b) => b.length - a.length);
    const stem = $("target").value.replace(/\.gguf$/, "");
    const old = known.find((name) => stem.endsWith(`-${name}`));
    $("target").value = `${old ? stem.slice(0, -old.length - 1) : stem}${quant && `-${quant}`}.gguf`;
  }

  function prepare() {
    const shown = state.about.quants.filter((each) => each.file_type !== null);
    $("quant").replaceChildren(h("option", { value: "" }, "as in the source"), ...shown.map((each) => h("option", { value: each.quant, selected: each.quant === "Q4_K_M" },
      `${each.quant}${each.imatrix ? "  (needs an importance matrix)" : ""}`)));
    for (const select of document.querySelectorAll("select.type")) {
      select.append(h("option", { value: "" }, "by the recipe"), ...state.about.types.map((name) => h("option", {}, name)));
    }
    $("kind").append(...state.about.types.map((name) => h("option", { selected: name === "Q6_K" }, name)));
    $("quants").value = state.about.compared.join(",");
    for (const each of tabs) {
      each.addEventListener("click", () => tab(each.id.slice(4)));
      each.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) tab(tabs[(tabs.indexOf(each) + step + tabs.length) % tabs.length].id.slice(4), true);
      });
    }
    $("filter").addEventListener("input", filter);
    $("choose").addEventListener("click", () => choose(openModel));
    for (const button of document.querySelectorAll(".pick")) button.addEventListener("click", () => choose((path) => {
      $(button.dataset.for).value = path;
      if (button.dataset.for === "imatrix") plan();
    }));
    $("quant").addEventListener("change", named);
    for (const id of ["quant", "output_type", "embedding_type", "pure", "allow_requantize", "imatrix"]) $(id).addEventListener("change", planSoon);
    $("target").addEventListener("input", planSoon);
    const sent = (id, work) => $(id).addEventListener("submit", (event) => { event.preventDefault(); if (state.model) work(); });
    sent("types", plan);
    sent("override", () => { if ($("pattern").value) override($("pattern").value, $("kind").value); $("pattern").value = ""; });
    sent("measure", () => start("compare", { ...request(), quants: $("quants").value.split(",").map((name) => name.trim()).filter(Boolean) }));
    sent("run", () => start("convert", { ...request(), force: $("force").checked }));
    sent("prove", prove);
    sent("differ", () => start("diff", { before: state.model.path, after: $("other").value }));
    if (matchMedia("(max-width: 860px)").matches) $("side").open = false;
  }

  const begin = tried(async () => {
    state.about = await ask("about");
    prepare();
    const wanted = location.hash.slice(1);
    tab(tabs.some((each) => each.id === `tab-${wanted}`) ? wanted : "model");
    if (state.about.model) await openModel(state.about.start);
    else await choose(openModel);
    document.documentElement.setAttribute("data-ready", "");
  });

  begin();
})();
