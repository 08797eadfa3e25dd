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

// A check tells line by line how far it has come; without scripts a page waits for its end.
for (const link of document.querySelectorAll("a[data-check]")) {
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    const said = document.createElement("p"), bar = document.createElement("progress"), damaged = [];
    const tell = (kind, text) => { said.className = kind; said.textContent = text; };
    said.setAttribute("role", "status");
    said.append("Reading …", bar);
    said.classList.add("check");
    link.parentElement.replaceWith(said);
    let last = null, rest = "";
    try {
      const reply = await fetch(link.dataset.check);
      if (!reply.ok) throw new Error(`answered ${reply.status}`);
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          last = JSON.parse(line);
          damaged.push(...last.damaged);
          bar.max = last.total || 1;
          bar.value = last.done;
        }
      }
      if (!last || last.sound === null) throw new Error("ended before its end");
      const size = `${last.objects.toLocaleString("en")} objects, ${last.done.toLocaleString("en")} bytes`;
      if (last.sound) tell("good", `Sound: ${size}, all as they were written.`);
      else {
        tell("trouble", `Damaged: ${damaged.length} faults in ${size}. \`hilbertflow repair\` makes what is broken again.`);
        const list = document.createElement("ul");
        list.append(...damaged.slice(0, 100).map((text) => Object.assign(document.createElement("li"), { textContent: text })));
        said.after(list);
      }
    } catch (error) {
      tell("trouble", `The check ${error.message}.`);
    }
  });
}
