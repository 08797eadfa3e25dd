// The page works without this; with it, addresses hold no empty fields and pictures that are gone leave no frame.
"use strict";

for (const form of document.querySelectorAll("form[method=get]")) {
  form.addEventListener("submit", () => {
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
