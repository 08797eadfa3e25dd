// The page works without this; with it, addresses hold no empty fields and pictures that are gone leave no frame.
"use strict";

for (const form of document.querySelectorAll("form[method=get]")) {
  form.addEventListener("submit", (event) => {
    if (event.submitter && event.submitter.formMethod === "post") return;
    const empty = [...form.elements].filter((field) => field.name && !field.value);
    for (const field of empty) field.disabled = true;
    setTimeout(() => empty.forEach((field) => (field.disabled = false)));
  });
}

for (const picture of document.querySelectorAll("img.thumb")) {
  const gone = () => picture.remove();
  if (picture.complete && !picture.naturalWidth) gone();
  else picture.addEventListener("error", gone);
}

// What changes by itself is fetched again every few seconds while somebody looks at it.
for (const part of document.querySelectorAll("[data-refresh]")) {
  setInterval(async () => {
    if (document.hidden || part.contains(document.activeElement)) return;
    const reply = await fetch(location.href, { headers: { Accept: "text/html" } }).catch(() => null);
    if (!reply || !reply.ok) return;
    const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("[data-refresh]");
    if (fresh) part.replaceChildren(...fresh.childNodes);
  }, 1000 * part.dataset.refresh);
}

// A picture may be dropped on the form, pasted into it or chosen: it is asked with at once.
for (const button of document.querySelectorAll("button[data-for]")) {
  const form = button.form, input = document.getElementById(button.dataset.for);
  const ask = (files) => {
    const pictures = [...files].filter((file) => /^image[/](jpeg|png)$/.test(file.type));
    if (!pictures.length) return;
    const held = new DataTransfer();
    held.items.add(pictures[0]);
    input.files = held.files;
    form.requestSubmit(button);
  };
  input.addEventListener("change", () => input.files.length && form.requestSubmit(button));
  form.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => { event.preventDefault(); form.classList.remove("over"); ask(event.dataTransfer.files); });
  document.addEventListener("paste", (event) => ask(event.clipboardData.files));
}

// What takes a while to find is fetched behind the page; without scripts it is a link.
for (const place of document.querySelectorAll("[data-load]")) {
  fetch(place.dataset.load)
    .then((reply) => (reply.ok ? reply.text() : ""))
    .then((text) => {
      const part = new DOMParser().parseFromString(text, "text/html").getElementById("part");
      if (part) place.replaceWith(part);
    })
    .catch(() => {});
}
