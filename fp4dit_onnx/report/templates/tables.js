// Makes the headings of .sortable tables buttons that sort; without it the tables stay in order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };
  const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const unknown = (row) => Number.isNaN(key(row, column));
      const rows = [...body.rows].sort((a, b) =>
        unknown(a) - unknown(b) || (descending ? -1 : 1) * compare(key(a, column), key(b, column)));
      body.append(...rows);
    });
  });
}
// Says so where a table is wider than its place; without it the region scrolls all the same.
const hint = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("scrolls", target.scrollWidth > target.clientWidth);
});
for (const region of document.querySelectorAll(".region")) hint.observe(region);
