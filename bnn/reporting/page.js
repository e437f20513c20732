"use strict";
// A click on the head of a column sorts by it: up, then down. Numbers go by size; what has none goes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column] ? row.cells[column].dataset.key : "";
      const order = (a, b) => {
        const [first, second] = [key(a), key(b)];
        const [x, y] = [parseFloat(first), parseFloat(second)];
        const numbers = head.classList.contains("number");
        if (numbers && (Number.isNaN(x) || Number.isNaN(y))) return Number.isNaN(x) - Number.isNaN(y);
        const sign = numbers ? x - y : first.localeCompare(second);
        return down ? -sign : sign;
      };
      [...body.rows].sort(order).forEach((row) => body.append(row));
    });
  });
}
