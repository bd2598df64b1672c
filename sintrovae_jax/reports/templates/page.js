"use strict";
for (const box of document.querySelectorAll("[data-slider]")) {
  const steps = box.dataset.slider.split(" ").map(Number);
  const range = box.querySelector("input");
  const output = box.querySelector("output");
  const figures = [...box.querySelectorAll("[data-frames]")].map((figure) => [...figure.querySelectorAll("img")]);
  const show = () => {
    const step = steps[Number(range.value)];
    output.textContent = step.toLocaleString("en-US");
    for (const frames of figures) {
      // The newest picture that was drawn by then.
      const shown = frames.filter((frame) => Number(frame.dataset.step) <= step).at(-1) ?? frames[0];
      for (const frame of frames) frame.hidden = frame !== shown;
    }
  };
  range.addEventListener("input", show);
  show();
}
for (const zoom of document.querySelectorAll(".zoom")) {
  zoom.addEventListener("click", () => zoom.classList.toggle("full"));
}
