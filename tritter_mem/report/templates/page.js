"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Colours: a probe turns "--ink", as the theme has it now, into what Plotly understands.
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  const resolve = (value) => {
    if (Array.isArray(value)) return value.map(resolve);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, resolve(part)]));
    if (typeof value !== "string" || !/^(on )?--[a-z-]+$/.test(value)) return value;
    const onFill = value.startsWith("on ");
    probe.style.color = `var(${onFill ? value.slice(3) : value})`;
    const found = getComputedStyle(probe).color;
    return onFill ? readableOn(found) : found;
  };
  // Of black and white one has a contrast of 4.5 and more on any colour.
  const readableOn = (fill) => {
    const [red, green, blue] = fill.match(/[\d.]+/g).map((level) => {
      const light = level / 255;
      return light <= 0.04045 ? light / 12.92 : ((light + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
  };

  const axis = {
    gridcolor: "--rule", linecolor: "--rule", zerolinecolor: "--rule",
    tickcolor: "--rule", tickfont: { color: "--soft" }, automargin: true,
  };
  const themed = (layout) => resolve({
    margin: { l: 12, r: 12, t: 28, b: 28 },
    showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: "--panel", bordercolor: "--rule", font: { color: "--ink" } },
    ...layout,
    font: { family: "system-ui, sans-serif", size: 12, color: "--soft" },
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  });

  const figures = new Map();
  for (const figure of document.querySelectorAll("figure.chart"))
    figures.set(
      figure.querySelector(".drawing"),
      JSON.parse(figure.querySelector("script[type='application/json']").textContent),
    );
  const drawn = new Set();
  const draw = (plot) => {
    const { data, layout } = figures.get(plot);
    drawn.add(plot);
    Plotly.react(plot, resolve(data), themed(layout), { responsive: true, displayModeBar: false });
  };
  const redraw = () => drawn.forEach(draw);

  if (window.Plotly) {
    // A chart is drawn when it comes near the screen: twenty profiles open as fast as one.
    const near = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries)
        if (isIntersecting) {
          near.unobserve(target);
          draw(target);
        }
    }, { rootMargin: "400px" });
    for (const plot of figures.keys()) near.observe(plot);
  } else {
    for (const plot of figures.keys()) {
      plot.style.height = "auto";
      plot.innerHTML = "<p>The chart library could not be loaded; the numbers are below.</p>";
      plot.removeAttribute("role");
      plot.parentElement.querySelector("details").open = true;
    }
  }

  // Theme: the system's, until the button is pressed.
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const applied = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
    redraw();
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    applied();
  });
  dark.addEventListener("change", applied);
  applied();

  // Paper is light and narrow, and shows every profile.
  const PAPER_WIDTH = "640px";
  let before = null;
  addEventListener("beforeprint", () => {
    const closed = [...document.querySelectorAll("details.profile:not([open])")];
    before = { theme: root.dataset.theme, closed };
    root.dataset.theme = "light";
    for (const profile of closed) profile.open = true;
    if (!window.Plotly) return;
    for (const plot of figures.keys()) {
      plot.style.width = PAPER_WIDTH;
      draw(plot);
      Plotly.relayout(plot, { width: parseInt(PAPER_WIDTH, 10) });
    }
  });
  addEventListener("afterprint", () => {
    if (!before) return;
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    for (const profile of before.closed) profile.open = false;
    for (const plot of figures.keys()) plot.style.width = "";
    before = null;
    redraw();
  });

  // Tables: sort by a heading, numbers by their value; what has no value stays last.
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [key(a, column), key(b, column)];
    if (x !== null && y !== null) return sign * (x - y);
    if (x !== null || y !== null) return x === null ? 1 : -1;
    return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
  };
  // On a phone a bar has a line to itself, which goes where its row goes.
  for (const track of document.querySelectorAll("td.bars > .track")) {
    const row = track.closest("tr");
    const below = document.createElement("tr");
    below.className = "below";
    below.hidden = row.hidden;
    below.setAttribute("aria-hidden", "true");
    const cell = below.appendChild(document.createElement("td"));
    cell.colSpan = row.cells.length;
    cell.append(track.cloneNode(true));
    row.after(below);
  }
  const rowsOf = (body) => [...body.rows].filter((row) => !row.classList.contains("below"));
  const barOf = (row) => {
    const next = row.nextElementSibling;
    return next?.classList.contains("below") ? next : null;
  };
  for (const table of document.querySelectorAll("table.sortable"))
    table.querySelectorAll("th button").forEach((button, column) =>
      button.addEventListener("click", () => {
        const heading = button.parentElement;
        const up = heading.getAttribute("aria-sort") !== "ascending";
        for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const pairs = rowsOf(body).map((row) => [row, barOf(row)]);
        pairs.sort(([a], [b]) => compare(column, up ? 1 : -1)(a, b));
        body.append(...pairs.flat().filter((row) => row));
      }));

  // Long tables: a search looks at all rows, "layers.7" also at those of "layers.*".
  for (const listing of document.querySelectorAll(".listing")) {
    const rows = () => rowsOf(listing.querySelector("tbody"));
    const field = listing.querySelector("input[type='search']");
    const all = listing.querySelector("button.all");
    const shown = listing.querySelector(".shown");
    let whole = !all;
    const show = () => {
      const wanted = (field?.value ?? "").trim().toLowerCase();
      const general = wanted.replace(/\.\d+(?=\.|$)/g, ".*");
      for (const row of rows()) {
        const text = row.textContent.toLowerCase();
        const found = text.includes(wanted) || text.includes(general);
        row.hidden = wanted ? !found : !whole && "more" in row.dataset;
        const bar = barOf(row);
        if (bar) bar.hidden = row.hidden;
      }
      const found = rows().filter((row) => !row.hidden).length;
      if (shown) shown.textContent = wanted ? `${found} of ${rows().length}` : "";
      if (all) all.hidden = whole || wanted !== "";
    };
    field?.addEventListener("input", show);
    all?.addEventListener("click", () => {
      whole = true;
      show();
    });
  }

  // Downloads: the data is in the page, compressed.
  const unpack = async (id) => {
    const packed = atob(document.getElementById(id).textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  };
  for (const button of document.querySelectorAll("[data-download]"))
    button.addEventListener("click", async () => {
      const { download, name, type } = button.dataset;
      const content = await unpack(download);
      const text = typeof content === "string" ? content : JSON.stringify(content, null, 2);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
})();
