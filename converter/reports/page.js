"use strict";
// Draws the plots of the page in the colours of the page, and makes its table sort and filter.
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // The layout of a plot with the page's colours; `layout` itself holds none.
  function themed(layout) {
    const [ink, soft, grid, panel] = ["--ink", "--soft", "--grid", "--panel"].map(colour);
    const result = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: 13 },
      margin: { l: 64, r: 18, t: 36, b: 52 }, hovermode: "closest",
      hoverlabel: { bgcolor: panel, bordercolor: grid, font: { color: ink } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      ...layout,
    };
    for (const name of ["xaxis", "yaxis"]) {
      const axis = { gridcolor: grid, zeroline: false, linecolor: grid, tickcolor: soft, automargin: true, ...layout[name] };
      result[name] = { ...axis, tickfont: { color: soft }, title: { text: axis.title, standoff: 10, font: { color: soft } } };
    }
    return result;
  }

  // Colours by role: a trace says which of the page's colours a part of it takes.
  function coloured(trace) {
    const result = structuredClone(trace);
    for (const [path, name] of Object.entries(trace.meta?.colours ?? {})) {
      const keys = path.split(".");
      const last = keys.pop();
      let place = result;
      for (const key of keys) place = place[key] ??= {};
      place[last] = colour(name);
    }
    return result;
  }

  // A plot has one set of traces, or one for each entry of the list that chooses among them.
  function draw(id) {
    const { traces, layout, chooser } = plots[id];
    const chosen = chooser ? traces[document.getElementById(chooser).value] : traces;
    const shown = document.getElementById("logarithmic")?.checked ?? false;
    const type = id === "values" ? { yaxis: { ...layout.yaxis, type: shown ? "log" : "linear" } } : {};
    return Plotly.react(id, chosen.map(coloured), themed({ ...layout, ...type }), CONFIG);
  }

  const drawAll = () => Promise.all(Object.keys(plots).map(draw));

  for (const id of ["tensor", "logarithmic"]) document.getElementById(id)?.addEventListener("change", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  const table = document.getElementById("tensors");
  if (table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const names = new Intl.Collator(undefined, { numeric: true });

    function compare(a, b, column, number) {
      const [x, y] = [a.cells[column].dataset.value, b.cells[column].dataset.value];
      if (!number) return names.compare(x, y);
      if (x === "" || y === "") return (x === "") - (y === ""); // nothing goes to the end
      return Number(x) === Number(y) ? 0 : Number(x) - Number(y);
    }

    function sort(column) {
      const head = heads[column];
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const number = "number" in head.dataset;
      rows.sort((a, b) => (descending ? compare(b, a, column, number) : compare(a, b, column, number)));
      body.append(...rows);
    }

    function filter() {
      const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      const failed = document.getElementById("failed").checked;
      let count = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = (failed && !row.classList.contains("failed")) || !words.every((word) => text.includes(word));
        count += !row.hidden;
      }
      document.getElementById("count").textContent = `${count} of ${rows.length} tensors`;
    }

    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(column)));
    document.getElementById("filter").addEventListener("input", filter);
    document.getElementById("failed").addEventListener("change", filter);
    filter();
  }

  drawAll().then(() => document.documentElement.setAttribute("data-drawn", ""));
})();
