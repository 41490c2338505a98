// The gallery: more tiles as the end comes near, reviews by key and button, marks for comparing. Without it the page still has its
// pictures, its filters and a link to more.
"use strict";

const MOST_COMPARED = 4;
const MOVES = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: "row", ArrowUp: "-row" };
const VERDICTS = { a: "approved", r: "rejected", u: "" };

document.addEventListener("DOMContentLoaded", () => {
  const list = document.getElementById("tiles");
  goOn(list);
  list.addEventListener("keydown", pressed);
  list.addEventListener("click", clicked);
  list.addEventListener("change", changed);
  window.addEventListener("pageshow", countMarks); // by then the browser has put back the marks of a page it returns to
});

// --- endless ---------------------------------------------------------------------------------------------------------

function goOn(list) {
  const more = list.querySelector(".rk-tile-more");
  if (!more) return;
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    fetchMore(list, more);
  }, { rootMargin: "600px" });
  seen.observe(more);
}

async function fetchMore(list, more) {
  try {
    const answer = await fetch(`${more.querySelector("a").href}&tiles=1`);
    if (!answer.ok || answer.redirected) return; // the link stays, for a click
    const page = new DOMParser().parseFromString(`<ul>${await answer.text()}</ul>`, "text/html");
    more.replaceWith(...page.querySelectorAll("ul > li"));
    goOn(list);
  } catch {
    // The line is down: the link stays.
  }
}

// --- reviews ---------------------------------------------------------------------------------------------------------

function pressed(event) {
  const tile = event.target.closest(".rk-tile");
  if (!tile || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in MOVES) move(tile, MOVES[key]);
  else if (key === "c") mark(tile);
  else if (tile.querySelector("[data-rating]") && key in VERDICTS) review(tile, { verdict: VERDICTS[key] });
  else if (tile.querySelector("[data-rating]") && /^[0-5]$/.test(key)) review(tile, { rating: key });
  else return;
  event.preventDefault();
}

function move(tile, step) {
  const tiles = [...document.querySelectorAll(".rk-tile")];
  const perRow = tiles.filter((other) => other.offsetTop === tiles[0].offsetTop).length;
  const places = step === "row" ? perRow : step === "-row" ? -perRow : step;
  tiles[tiles.indexOf(tile) + places]?.querySelector("a").focus();
}

function clicked(event) {
  const button = event.target.closest("button[data-verdict]");
  if (!button) return;
  const undone = button.getAttribute("aria-pressed") === "true";
  review(button.closest(".rk-tile"), { verdict: undone ? "" : button.dataset.verdict });
}

function changed(event) {
  if (event.target.matches("[data-rating]")) review(event.target.closest(".rk-tile"), { rating: event.target.value });
  if (event.target.matches("[name=image]")) countMarks();
}

let before = Promise.resolve();

// One after the other, so that the last key pressed is the last that counts.
function review(tile, change) {
  before = before.then(() => send(tile, change));
}

async function send(tile, change) {
  const headers = { "X-CSRFToken": document.querySelector("[name=csrfmiddlewaretoken]").value };
  let said = "This could not be saved; is the line down?";
  try {
    const answer = await fetch(tile.dataset.review, { method: "POST", headers, body: new URLSearchParams(change) });
    const now = await answer.json();
    if (answer.ok) {
      show(tile, now);
      said = [now.rating ? `${now.rating} stars` : "no stars", now.verdict || "undecided"].join(", ");
    } else said = now.detail;
  } catch {
    // Signed out, or no line: it says so.
  }
  say(said);
}

function show(tile, now) {
  tile.dataset.verdict = now.verdict;
  tile.querySelector("[data-rating]").value = now.rating;
  for (const button of tile.querySelectorAll("button[data-verdict]")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === now.verdict));
  }
}

// --- comparing -------------------------------------------------------------------------------------------------------

function mark(tile) {
  const box = tile.querySelector("[name=image]");
  box.checked = !box.checked;
  countMarks();
}

function countMarks() {
  const marked = document.querySelectorAll("#tiles [name=image]:checked").length;
  document.querySelector("#compare button").disabled = marked < 2 || marked > MOST_COMPARED;
  if (marked) say(`${marked} marked`);
}

function say(text) {
  document.querySelector("#compare [role=status]").textContent = text;
}
