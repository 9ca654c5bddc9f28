// What is wider than its place scrolls, and the keyboard stops there; the rest is no stop.
{
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const region of document.querySelectorAll(".scroll")) watch.observe(region);
}

// Tables: a click or Enter on a heading sorts (ascending, descending, as it was); the form above filters.
for (const grid of document.querySelectorAll("[data-grid]")) {
  const body = grid.querySelector("tbody");
  const headings = [...grid.querySelectorAll("thead th")];
  const original = [...body.rows];

  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = { inf: Infinity, "-inf": -Infinity }[text] ?? Number(text);
    return text !== "" && !Number.isNaN(number) ? number : text.toLowerCase();
  };
  const compare = (a, b) =>
    typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;

  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      const order = next[heading.getAttribute("aria-sort")];
      for (const each of headings) each.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const rows = [...original];
      if (order !== "none") rows.sort((a, b) => sign * compare(value(a, column), value(b, column)));
      body.append(...rows);
    });
  });

  const form = grid.querySelector("form");
  if (!form) continue;
  const selects = [...form.querySelectorAll("select")];
  const differs = form.querySelector("[data-differs]");
  const plain = (text) => text.trim().replace(/\s+/g, " "); // as a browser writes an option's value
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    let shown = 0;
    for (const row of original) {
      const fits = selects.every(
        (select) => !select.value || plain(row.cells[select.dataset.column].textContent) === plain(select.value),
      );
      row.hidden = !fits || (differs?.checked && row.dataset.differs !== "yes");
      shown += !row.hidden;
    }
    form.querySelector("output").textContent =
      shown === original.length ? `${shown} rows` : `${shown} of ${original.length} rows`;
  });
}
