// Keeps pages as they are on the server while something on them is under way: the page is asked for again, and the parts that carry
// data-live take their new content. Nothing is asked while nobody looks, or once everything has ended.
"use strict";

const REST_MS = 2000;

document.addEventListener("DOMContentLoaded", () => rest());

function rest() {
  if (document.querySelector("[data-live-until-ended]")) setTimeout(refresh, REST_MS);
}

async function refresh() {
  if (document.visibilityState === "visible") {
    try {
      const answer = await fetch(window.location.href, { headers: { "X-Requested-With": "live" } });
      if (answer.ok) take(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The server restarts or the line is down: the next round asks again.
    }
  }
  // The facts beside such a part are the form's: once, at the end, the whole page comes anew.
  if (document.querySelector("[data-live-then-anew]") && !document.querySelector("[data-live-until-ended]")) window.location.reload();
  rest();
}

function take(fresh) {
  for (const part of document.querySelectorAll("[data-live]")) {
    const now = fresh.getElementById(part.id);
    if (!now || now.outerHTML === part.outerHTML) continue;
    const row = part.closest("tr");
    row ? takeCells(row, now.closest("tr")) : part.replaceWith(now);
  }
}

// The row's checkbox stays, for somebody may have ticked it.
function takeCells(row, now) {
  [...row.cells].forEach((cell, place) => {
    if (!cell.querySelector("input")) cell.innerHTML = now.cells[place].innerHTML;
  });
}
