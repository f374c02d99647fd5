// What is wrong with a page as it is drawn now: one line for each thing.
const problems = [];
const say = (what, where) => problems.push(`${what}: ${where}`);
const numbers = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
const light = (color) => {
  const [red, green, blue] = numbers(color).slice(0, 3).map((level) => {
    const part = level / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const contrast = (first, second) => {
  const [low, high] = [light(first), light(second)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const isClear = (color) => color === "transparent" || numbers(color)[3] === 0;
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!isClear(color)) return color;
  }
  return "rgb(255, 255, 255)";
};
const isSeen = (element) => {
  if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) return false;
  const box = element.getBoundingClientRect();
  return box.width > 1 && box.height > 1;
};

if (document.documentElement.scrollWidth > innerWidth)
  say("wider than the page", `${document.documentElement.scrollWidth} of ${innerWidth}`);

// Text of the page itself.
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const node = texts.currentNode;
  const parent = node.parentElement;
  if (!node.data.trim() || parent.closest("svg, script, style, .hidden, .skip") || !isSeen(parent)) continue;
  const { color } = getComputedStyle(parent);
  const found = contrast(color, ground(parent));
  if (found < 4.5) say(`contrast ${found.toFixed(2)}`, node.data.trim().slice(0, 40));
  if (!parent.closest("td, th, h1, h2, h3, p, code, summary, li")) continue;
  for (const word of node.data.matchAll(/\S+/g)) {
    const range = document.createRange();
    range.setStart(node, word.index);
    range.setEnd(node, word.index + word[0].length);
    const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
    // A hyphen is a place to break.
    if (lines.size > 1 && !word[0].includes("-")) say("a word is broken", word[0].slice(0, 60));
  }
}
for (const element of document.querySelectorAll("main *")) {
  const style = getComputedStyle(element);
  if (element.closest(".hidden, svg, .drawing") || element.matches(".scroll") || !isSeen(element)) continue;
  if (style.overflowX !== "visible" && element.scrollWidth > element.clientWidth + 1)
    say("clipped", element.textContent.trim().slice(0, 40));
}

// Labels of the charts.
for (const plot of document.querySelectorAll(".drawing.js-plotly-plot")) {
  if (!isSeen(plot)) continue;
  const frame = plot.getBoundingClientRect();
  const labels = [...plot.querySelectorAll("text")].filter((text) => text.textContent.trim() && isSeen(text));
  const boxes = labels.map((text) => text.getBoundingClientRect());
  labels.forEach((text, at) => {
    const box = boxes[at];
    const slice = text.closest(".slice");
    const around = slice ? slice.querySelector("path").getBoundingClientRect() : frame;
    if (box.left < around.left - 1 || box.right > around.right + 1 || box.top < around.top - 1 || box.bottom > around.bottom + 1)
      say("a label is cut off", text.textContent);
    const fill = slice ? getComputedStyle(slice.querySelector("path")).fill : ground(plot);
    const found = contrast(getComputedStyle(text).fill, fill);
    if (found < 4.5) say(`contrast ${found.toFixed(2)} of a label`, text.textContent);
    for (let other = at + 1; other < labels.length; other += 1) {
      const that = boxes[other];
      if (box.left < that.right - 1 && that.left < box.right - 1 && box.top < that.bottom - 2 && that.top < box.bottom - 2)
        say("labels cover each other", `${text.textContent} / ${labels[other].textContent}`);
    }
  });
}
return [...new Set(problems)];
