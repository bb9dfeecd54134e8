"use strict";
// without scripts these would do nothing
for (const one of document.querySelectorAll(".scripted")) one.hidden = false;
for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = head.classList.contains("left") || column === 0 ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = row => row.children[column].dataset.sort;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is not known stays last
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  }));
}
const hex = text => parseInt(text.slice(1), 16);
const palettes = document.querySelector(".palette");
if (palettes) {
  const [own, safe] = JSON.parse(document.getElementById("colours").textContent).map(list => list.map(hex));
  const swap = new Map(own.map((colour, i) => [colour, safe[i]]));
  const recolour = img => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(img, 0, 0);
    const dots = context.getImageData(0, 0, canvas.width, canvas.height), d = dots.data;
    for (let i = 0; i < d.length; i += 4) {
      const to = d[i + 3] === 255 ? swap.get(d[i] << 16 | d[i + 1] << 8 | d[i + 2]) : undefined;
      if (to !== undefined) [d[i], d[i + 1], d[i + 2]] = [to >> 16, to >> 8 & 255, to & 255];
    }
    context.putImageData(dots, 0, 0);
    return canvas.toDataURL();
  };
  const pictures = [...document.querySelectorAll("img[data-classes]")].map(img => ({img, own: img.src, safe: null}));
  for (const button of palettes.querySelectorAll("button")) button.addEventListener("click", () => {
    const choice = button.dataset.palette;
    palettes.querySelectorAll("button").forEach(b => b.setAttribute("aria-pressed", b === button));
    document.documentElement.classList.toggle("safe", choice === "safe");
    for (const one of pictures) {
      if (choice === "safe") one.safe ??= recolour(one.img);
      one.img.src = one[choice];
    }
  });
}
const modes = {
  row: "Each row sums to 100: how the ground of a class is mapped; the diagonal is the producer's accuracy.",
  col: "Each column sums to 100: what the ground is where the map names a class; the diagonal is the user's accuracy.",
  count: "Counts of pixels, coloured by their share of the row.",
};
const choices = [...document.querySelectorAll(".choice button[data-by]")];
for (const choice of choices) choice.addEventListener("click", () => {
  const by = choice.dataset.by;
  choices.forEach(c => c.setAttribute("aria-pressed", c === choice));
  document.getElementById("matrix-mode").textContent = modes[by];
  for (const cell of document.querySelectorAll(".matrix td")) {
    const known = by === "col" ? cell.dataset.col : cell.dataset.row;
    const [share, count] = [Number(known), Number(cell.dataset.count)];
    cell.style.setProperty("--share", share);
    cell.classList.toggle("strong", share > 0.655);
    cell.textContent = by === "count" ? count.toLocaleString("en") : known === "" ? "–" : count === 0 ? "·"
      : share < 0.005 ? "<1" : Math.round(100 * share);
  }
});
for (const zoom of document.querySelectorAll(".zoom")) zoom.addEventListener("click", () => {
  const wide = zoom.parentElement.classList.toggle("wide");
  zoom.setAttribute("aria-pressed", wide);
});
