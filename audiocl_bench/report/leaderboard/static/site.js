// Sorting, filtering and picking. The pages are complete without this file; it only makes them handier.
"use strict";

(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };

  const comparer = (column, kind, sign) => (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what has no value stays at the end either way
    const order = kind === "number" ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
    return sign * order;
  };

  // Every header with data-sort becomes a button; the last body (references) keeps its place below.
  const makeSortable = (table) => {
    const headers = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    if (!body) return;
    headers.forEach((header, column) => {
      const kind = header.dataset.sort;
      if (!kind) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const first = header.dataset.best ?? "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const direction = header.getAttribute("aria-sort") === first ? other : first;
        headers.forEach((each) => each.hasAttribute("aria-sort") && each.setAttribute("aria-sort", "none"));
        header.setAttribute("aria-sort", direction);
        const rows = [...body.rows].sort(comparer(column, kind, direction === "ascending" ? 1 : -1));
        body.append(...rows);
      });
    });
  };

  const makeFilter = (form) => {
    const [text, complete, shown] = ["filter", "complete", "shown"].map((id) => form.querySelector(`#${id}`));
    const rows = [...document.querySelector("table.ranking").tBodies[0].rows];
    if (!rows.some((row) => row.hasAttribute("data-incomplete"))) complete.closest("label").hidden = true;
    const apply = () => {
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const name = row.cells[1].textContent.toLowerCase().replace(/\s+/g, " ");
        const wanted = words.every((word) => name.includes(word));
        row.hidden = !wanted || (complete.checked && row.hasAttribute("data-incomplete"));
        count += !row.hidden;
      }
      shown.textContent = `${count} of ${rows.length} entries`;
    };
    text.addEventListener("input", apply);
    complete.addEventListener("change", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    apply(); // browsers keep what was typed when a page is opened again
  };

  const makePicker = (form) => {
    const [first, second, picked] = ["first", "second", "picked"].map((id) => form.querySelector(`#${id}`));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const [low, high] = [first.value, second.value].map(Number).sort((a, b) => a - b);
      const link = document.querySelector(`a[data-pair="${low}-${high}"]`);
      if (link) window.location.href = link.href;
      else picked.textContent = low === high ? "Pick two different entries." : "These two have no comparison page.";
    });
    form.hidden = false;
  };

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll("form.filters").forEach(makeFilter);
  document.querySelectorAll("form.picker").forEach(makePicker);
})();
