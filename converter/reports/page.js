"use strict";
// Makes the table of the page sort and filter, and shows the values of the tensor that is chosen.
(() => {
  function choose() {
    const chosen = document.getElementById("tensor").value;
    const logarithmic = document.getElementById("logarithmic").checked;
    for (const each of document.querySelectorAll(".choice")) each.hidden = each.dataset.of !== chosen;
    for (const each of document.querySelectorAll(".choice .plain")) each.hidden = logarithmic;
    for (const each of document.querySelectorAll(".choice .log")) each.hidden = !logarithmic;
  }

  for (const id of ["tensor", "logarithmic"]) document.getElementById(id)?.addEventListener("change", choose);

  const table = document.getElementById("tensors");
  if (table) {
    // A link to a row that a filter hides leads to it all the same.
    addEventListener("hashchange", () => {
      const row = document.getElementById(location.hash.slice(1));
      if (row?.hidden) {
        document.getElementById("filter").value = "";
        document.getElementById("failed").checked = false;
        filter();
        row.scrollIntoView({ block: "center" });
      }
    });
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const names = new Intl.Collator(undefined, { numeric: true });

    function compare(a, b, column, number) {
      const [x, y] = [a, b].map((row) => row.cells[column].dataset.value ?? row.cells[column].textContent);
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

  document.documentElement.setAttribute("data-ready", "");
})();
