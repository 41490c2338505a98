// The upload form of the file browser: one file after the other, each with its bar. Without this script the form sends them all at once.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("upload");
  if (!form) return;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const list = form.querySelector(".rk-uploads");
    list.replaceChildren();
    const rows = [...form.elements.files.files].map((file) => [file, line(list, file.name)]);
    let allThere = true;
    for (const [file, row] of rows) allThere = (await send(form, file, row)) && allThere;
    if (allThere) window.location = address(form);
  });
});

// The folder that was named, which may be a new one.
function address(form) {
  const there = new URL(window.location.href);
  there.search = new URLSearchParams(form.elements.folder.value ? { folder: form.elements.folder.value } : {});
  return there;
}

function send(form, file, row) {
  const body = new FormData();
  body.append("csrfmiddlewaretoken", form.elements.csrfmiddlewaretoken.value);
  body.append("folder", form.elements.folder.value);
  body.append("files", file);
  return new Promise((finished) => {
    const request = new XMLHttpRequest();
    request.open("POST", form.action);
    request.setRequestHeader("X-Requested-With", "upload");
    request.upload.addEventListener("progress", (sent) => sent.lengthComputable && row.show(sent.loaded, sent.total));
    request.addEventListener("load", () => {
      const there = request.status === 201;
      there ? row.done() : row.fail(sentence(request));
      finished(there);
    });
    request.addEventListener("error", () => {
      row.fail("The connection was lost; upload it again.");
      finished(false);
    });
    request.send(body);
  });
}

// The platform says why; a session that has ended is told by the status alone.
function sentence(request) {
  try {
    return JSON.parse(request.responseText).said.join(" ");
  } catch {
    return `The platform answered ${request.status}.`;
  }
}

function line(list, name) {
  const element = document.createElement("div");
  element.className = "rk-upload";
  const title = Object.assign(document.createElement("span"), { className: "rk-upload-name", textContent: name });
  const bar = Object.assign(document.createElement("progress"), { max: 1, value: 0 });
  bar.setAttribute("aria-label", name);
  const state = Object.assign(document.createElement("span"), { className: "rk-upload-state", textContent: "waits" });
  element.append(title, bar, state);
  list.append(element);
  return {
    show(sent, total) {
      bar.value = sent / total;
      state.textContent = `${Math.floor((100 * sent) / total)} %`;
    },
    done() {
      bar.value = 1;
      state.textContent = "is here";
    },
    fail(reason) {
      element.classList.add("rk-upload-failed");
      state.textContent = reason;
    },
  };
}
