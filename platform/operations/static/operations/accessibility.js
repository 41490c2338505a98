// Gives a name to controls that the theme leaves without one: those in the cells of a table of forms take their column's, and the
// search field of a choice of many takes the choice's. Rows that are added later are named as they come. And lets the keyboard into
// tables that are wider than their frame, and to the field where a page begins. Buttons beside a title become items of their list.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  nameControls();
  listTools();
  reachTables();
  window.addEventListener("resize", reachTables);
  for (const form of document.querySelectorAll('form[id$="_form"]')) {
    new MutationObserver(nameControls).observe(form, { childList: true, subtree: true });
  }
});

// The page is hidden until its scripts are at work, so the browser finds nothing that it could give the focus to. Alpine shows it
// right after it says that it is ready.
document.addEventListener("alpine:initialized", () => setTimeout(() => {
  if (document.activeElement === document.body) document.querySelector("[autofocus]")?.focus();
}));

function nameControls() {
  for (const cell of document.querySelectorAll(".inline-related td[class*=field-]")) {
    const column = /field-(\S+)/.exec(cell.className)[1];
    const heading = cell.closest("table")?.querySelector(`th.column-${CSS.escape(column)}`);
    const name = (heading?.textContent || column).replace("*", "").replace(/help\s*$/, "").trim();
    for (const control of cell.querySelectorAll("input:not([type=hidden]), select, textarea")) nameIt(control, name);
  }
  for (const search of document.querySelectorAll(".select2-search__field")) {
    const choice = search.closest(".select2-container")?.previousElementSibling;
    nameIt(search, choice?.labels?.[0]?.textContent.replace("*", "").trim() || "Search");
  }
}

function nameIt(control, name) {
  if (!control.labels?.length && !control.hasAttribute("aria-label")) control.setAttribute("aria-label", name);
}

function listTools() {
  for (const child of document.querySelectorAll("ul.object-tools > :not(li)")) {
    const item = document.createElement("li");
    child.replaceWith(item);
    item.append(child);
  }
}

function reachTables() {
  for (const frame of document.querySelectorAll(".rk-scroll")) {
    if (frame.scrollWidth > frame.clientWidth) frame.tabIndex = 0;
    else frame.removeAttribute("tabindex");
  }
}
