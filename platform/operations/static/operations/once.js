// A double click sends a form once: what follows within two seconds of the first time is not sent.
"use strict";

const PAUSE_MS = 2000;
const sentAt = new WeakMap();

document.addEventListener("submit", (event) => {
  if (event.defaultPrevented) return;
  const now = performance.now();
  if (now - (sentAt.get(event.target) ?? -PAUSE_MS) < PAUSE_MS) event.preventDefault();
  else sentAt.set(event.target, now);
});
