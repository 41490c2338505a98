// The upload form of models: files go in parts that may be interrupted, several at once, each with its bar.
// Without this script the form still works as an ordinary one, for one file that must arrive in one go.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const file = document.querySelector("input[type=file][data-uploads]");
  if (!file || !window.tus || !tus.isSupported) return;
  const form = file.form;
  file.multiple = true;
  const list = document.createElement("div");
  list.className = "rk-uploads";
  list.setAttribute("role", "status");

  form.addEventListener("submit", async (event) => {
    if (!file.files.length) return;
    event.preventDefault();
    (file.closest(".form-row") || file.parentElement).after(list);
    list.replaceChildren();
    const metadata = await described(form, file.files.length === 1);
    const sent = await Promise.all([...file.files].map((one) => send(one, metadata, list, file.dataset.uploads, form)));
    if (sent.every(Boolean)) window.location = file.dataset.afterwards;
  });
});

async function described(form, single) {
  const values = new FormData(form);
  const config = form.elements.config && form.elements.config.files[0];
  const metadata = {
    kind: values.get("kind"),
    access: values.get("access"),
    teams: values.getAll("teams").join(","),
    users: values.getAll("users").join(","),
    name: single ? values.get("name") || "" : "",
    config: config ? await config.text() : "",
  };
  for (const field of ["description", "trigger_words", "preferred_weight", "licence", "source_page", "base_model", "notes"]) {
    metadata[field] = values.get(field) || "";
  }
  return Object.fromEntries(Object.entries(metadata).filter(([, value]) => value));
}

function send(file, metadata, list, endpoint, form) {
  const row = line(file.name);
  list.append(row.element);
  return new Promise((finished) => {
    const upload = new tus.Upload(file, {
      endpoint,
      metadata: { filename: file.name, ...metadata },
      chunkSize: 16 * 1024 * 1024,
      retryDelays: [0, 1000, 3000, 10000, 30000],
      removeFingerprintOnSuccess: true,
      headers: { "X-CSRFToken": form.elements.csrfmiddlewaretoken.value },
      onProgress: (sent, total) => row.show(sent, total),
      onSuccess: () => {
        row.done();
        finished(true);
      },
      onError: (error) => {
        row.fail(sentence(error));
        finished(false);
      },
    });
    row.whenToggled((paused) => (paused ? upload.abort() : upload.start()));
    upload.findPreviousUploads().then((earlier) => {
      if (earlier.length) upload.resumeFromPreviousUpload(earlier[0]);
      upload.start();
    });
  });
}

function line(name) {
  const element = document.createElement("div");
  element.className = "rk-upload";
  const title = Object.assign(document.createElement("span"), { className: "rk-upload-name", textContent: name });
  const bar = Object.assign(document.createElement("progress"), { max: 1, value: 0 });
  bar.setAttribute("aria-label", name);
  const state = Object.assign(document.createElement("span"), { className: "rk-upload-state", textContent: "0 %" });
  const toggle = Object.assign(document.createElement("button"), { type: "button", textContent: "Pause" });
  element.append(title, bar, state, toggle);
  return {
    element,
    show(sent, total) {
      bar.value = sent / total;
      state.textContent = `${Math.floor((100 * sent) / total)} % of ${(total / 1048576).toFixed(1)} MB`;
    },
    done() {
      bar.value = 1;
      state.textContent = "received";
      toggle.remove();
    },
    fail(reason) {
      element.classList.add("rk-upload-failed");
      state.textContent = reason;
      toggle.remove();
    },
    whenToggled(act) {
      toggle.addEventListener("click", () => {
        const paused = toggle.textContent === "Pause";
        toggle.textContent = paused ? "Continue" : "Pause";
        act(paused);
      });
    },
  };
}

// The platform answers with a problem; anything else is the network's doing.
function sentence(error) {
  try {
    return JSON.parse(error.originalResponse.getBody()).detail;
  } catch {
    return error.message;
  }
}
