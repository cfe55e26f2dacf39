"use strict";
// The routing explorer. Reads the JSON in #data; builds the page with textContent alone, so that no name is ever markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const STEPS = 254, NONE = 255;
  const byId = (id) => document.getElementById(id);

  const make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const fill = (element, ...children) => element.replaceChildren(...children);
  const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
  const number = (value) => (value === null ? "–" : value.toFixed(2));

  // Matrices are one byte for each entry, in base64; they are unpacked when they are first looked at.
  const unpacked = new Map();
  const matrix = (layer, name) => {
    const key = `${layer}/${name}`;
    if (!unpacked.has(key)) unpacked.set(key, Uint8Array.from(atob(data.layers[layer][name]), (c) => c.charCodeAt(0)));
    return unpacked.get(key);
  };
  const entry = (layer, name, row, expert) => {
    const { experts, scale } = data.layers[layer];
    const step = matrix(layer, name)[row * experts + expert];
    return step === NONE || step === undefined ? null : (step / STEPS) * scale;
  };
  const colour = (share) => data.palette[Math.max(0, Math.min(data.palette.length - 1, Math.round(share * (data.palette.length - 1))))];
  const picture = (place, name, kind) =>
    data.images[place] ? make("img", { src: data.images[place], alt: name, className: kind }) : make("span", { textContent: "no picture" });

  const bar = (value, spread, scale, fillColour) => {
    const track = make("div", { className: "track" });
    const inner = make("b");
    inner.style.width = `${(100 * Math.min(value, scale)) / scale}%`;
    inner.style.background = fillColour;
    track.append(inner);
    if (spread !== null) {
      const line = make("i");
      const from = Math.max(0, value - spread), to = Math.min(scale, value + spread);
      line.style.left = `${(100 * from) / scale}%`;
      line.style.width = `${(100 * (to - from)) / scale}%`;
      track.append(line);
    }
    return track;
  };

  // Tabs
  const views = ["images", "experts", "classes"];
  const show = (view, focus = false) => {
    for (const name of views) {
      const tab = byId(`tab-${name}`), chosen = name === view;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      byId(`view-${name}`).hidden = !chosen;
      if (chosen && focus) tab.focus();
    }
  };
  for (const [index, name] of views.entries()) {
    byId(`tab-${name}`).addEventListener("click", () => show(name));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) show(views[(index + step + views.length) % views.length], true);
    });
  }

  // Images: thumbnail → coefficients at each layer
  let selected = 0;
  const thumbs = data.samples.map((sample, index) => {
    const title = `${data.classes[sample.label]}: ${sample.name}`;
    const button = make("button", { title, tabIndex: -1, role: "option", "aria-selected": "false" }, picture(sample.place, title, "thumb"));
    button.addEventListener("click", () => select(index));
    return button;
  });
  const visible = () => thumbs.map((_, index) => index).filter((index) => !thumbs[index].hidden);

  const select = (index, focus = false) => {
    thumbs[selected].setAttribute("aria-selected", "false");
    thumbs[selected].tabIndex = -1;
    selected = index;
    thumbs[index].setAttribute("aria-selected", "true");
    thumbs[index].tabIndex = 0;
    if (focus) thumbs[index].focus();
    const sample = data.samples[index];
    const status = make("p", { className: "hint", textContent: "Point at a cell for its value; choose a layer or a cell to see the expert." });
    fill(
      byId("image-detail"),
      picture(sample.place, sample.name, "large"),
      make("h3", { textContent: data.classes[sample.label] }),
      make("p", { className: "hint", textContent: sample.name }),
      legend(), heatMap(index, status), status,
    );
  };

  const legend = () => {
    const ramp = make("i");
    ramp.style.background = `linear-gradient(90deg, ${data.palette.join(",")})`;
    return make("p", { className: "legend" }, "coefficient 0", ramp, number(Math.max(...data.layers.map((layer) => layer.scale))));
  };

  const heatMap = (index, status) => {
    const scale = Math.max(...data.layers.map((layer) => layer.scale));
    const rows = data.layers.map((layer, depth) => {
      const name = make("button", { textContent: layer.name, title: layer.layers.join(", ") });
      name.addEventListener("click", () => showExpert(depth, 0));
      const row = make("tr", {}, make("th", { scope: "row" }, name));
      for (let expert = 0; expert < layer.experts; expert++) {
        const value = entry(depth, "samples", index, expert);
        const text = `${layer.name}, expert ${expert}: ${number(value)}`;
        const cell = make("td", { title: text });
        cell.style.background = value === null ? "repeating-linear-gradient(45deg, #888 0 2px, transparent 2px 5px)" : colour(value / scale);
        cell.addEventListener("mouseenter", () => { status.textContent = text; });
        cell.addEventListener("click", () => showExpert(depth, expert));
        row.append(cell);
      }
      return row;
    });
    return make("div", { className: "scroll" }, make("table", { className: "heat", "aria-label": "coefficients, a row for each layer, a column for each expert" }, make("tbody", {}, ...rows)));
  };

  const search = () => {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const [index, sample] of data.samples.entries()) {
      const text = `${data.classes[sample.label]} ${sample.name}`.toLowerCase();
      thumbs[index].hidden = !words.every((word) => text.includes(word));
    }
    const left = visible();
    byId("found").textContent = `${left.length} of ${thumbs.length} images`;
    if (left.length && !left.includes(selected)) select(left[0]);
  };
  byId("search").addEventListener("input", search);
  byId("thumbs").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const left = visible(), place = left.indexOf(selected) + step;
    if (left[place] !== undefined) select(left[place], true);
  });

  // Experts: layer and expert → its classes and images
  const expertLayer = byId("expert-layer"), expertNumber = byId("expert-number");
  const showExpert = (depth, expert) => {
    expertLayer.value = String(depth);
    offerExperts();
    expertNumber.value = String(expert);
    drawExpert();
    show("experts");
  };
  const offerExperts = () => {
    const before = Number(expertNumber.value) || 0, { experts } = data.layers[Number(expertLayer.value)];
    fill(expertNumber, ...Array.from({ length: experts }, (_, expert) => make("option", { value: String(expert), textContent: String(expert) })));
    expertNumber.value = String(Math.min(before, experts - 1));
  };
  const drawExpert = () => {
    const depth = Number(expertLayer.value), expert = Number(expertNumber.value), layer = data.layers[depth];
    const best = data.classes
      .map((name, row) => ({ name, mean: entry(depth, "mean", row, expert), std: entry(depth, "std", row, expert) }))
      .filter(({ mean }) => mean !== null)
      .sort((a, b) => b.mean - a.mean)
      .slice(0, data.topClasses);
    const classes = best.map(({ name, mean, std }) =>
      make("li", {}, make("span", { textContent: name, title: name }), bar(mean, std, layer.scale, data.pair[0]), make("span", { textContent: `${number(mean)} ± ${number(std)}` })));
    const images = layer.top[expert].map(([place, value]) => {
      const caption = make("figcaption", { textContent: value.toFixed(3) });
      return make("figure", {}, picture(place, `image ${place}`, ""), caption);
    });
    const tags = [["dead", layer.dead], ["always on", layer.alwaysOn]].filter(([, list]) => list.includes(expert)).map(([text]) => make("span", { className: "tag", textContent: text }));
    fill(
      byId("expert-detail"),
      make("p", {}, `Largest of its layer for ${percent(layer.largest[expert])} of the images. Layers: ${layer.layers.join(", ")}. `, ...tags),
      make("h3", { textContent: "Classes with the highest mean coefficient (± standard deviation)" }), make("ul", { className: "bars" }, ...classes),
      make("h3", { textContent: "Images with the highest coefficient" }), make("div", { className: "gallery" }, ...images),
    );
  };
  const stepExpert = (step) => {
    const { experts } = data.layers[Number(expertLayer.value)];
    expertNumber.value = String((Number(expertNumber.value) + step + experts) % experts);
    drawExpert();
  };
  expertLayer.addEventListener("change", () => { offerExperts(); drawExpert(); });
  expertNumber.addEventListener("change", drawExpert);
  byId("expert-previous").addEventListener("click", () => stepExpert(-1));
  byId("expert-next").addEventListener("click", () => stepExpert(1));

  // Classes: one against another
  const classA = byId("class-a"), classB = byId("class-b"), classLayer = byId("class-layer");
  const drawClasses = () => {
    const [a, b] = [classA, classB].map((input) => data.classes.indexOf(input.value));
    for (const [input, found] of [[classA, a], [classB, b]]) input.setCustomValidity(found < 0 ? "no such class" : "");
    if (a < 0 || b < 0) {
      fill(byId("class-detail"), make("p", { textContent: "Choose two classes from the list.", role: "status" }));
      return;
    }
    const depth = Number(classLayer.value), layer = data.layers[depth];
    const names = [a, b].map((label, index) => {
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = data.pair[index];
      return make("span", {}, swatch, `${data.classes[label]} (${data.counts[label]} images)  `);
    });
    const rows = Array.from({ length: layer.experts }, (_, expert) => {
      const values = [a, b].map((label) => [entry(depth, "mean", label, expert), entry(depth, "std", label, expert)]);
      const tracks = values.map(([mean, std], index) => bar(mean ?? 0, std, layer.scale, data.pair[index]));
      const text = values.map(([mean, std]) => `${number(mean)} ± ${number(std)}`).join(" | ");
      return make("li", {}, make("span", { textContent: `expert ${expert}` }), make("div", {}, ...tracks), make("span", { textContent: text }));
    });
    const distances = data.layers.map((other, index) => [other.name, distance(index, a, b)]);
    const most = Math.max(0.01, ...distances.map(([, value]) => value ?? 0));
    const depths = distances.map(([name, value]) =>
      make("li", {}, make("span", { textContent: name, title: name }), bar(value ?? 0, null, most, data.pair[0]), make("span", { textContent: number(value) })));
    fill(
      byId("class-detail"), make("p", {}, ...names),
      make("h3", { textContent: `Mean coefficients in ${layer.name} (± standard deviation)` }), make("ul", { className: "bars pair" }, ...rows),
      make("h3", { textContent: "How far apart, by depth (root mean square difference of the means)" }), make("ul", { className: "bars" }, ...depths),
    );
  };
  const distance = (depth, a, b) => {
    const { experts } = data.layers[depth];
    let sum = 0;
    for (let expert = 0; expert < experts; expert++) {
      const one = entry(depth, "mean", a, expert), other = entry(depth, "mean", b, expert);
      if (one === null || other === null) return null;
      sum += (one - other) ** 2;
    }
    return Math.sqrt(sum / experts);
  };
  for (const input of [classA, classB, classLayer]) input.addEventListener("change", drawClasses);
  byId("class-swap").addEventListener("click", () => {
    [classA.value, classB.value] = [classB.value, classA.value];
    drawClasses();
  });

  // Keys of the whole page
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      show("images");
      byId("search").focus();
    } else if (["1", "2", "3"].includes(event.key)) {
      show(views[Number(event.key) - 1], true);
    } else if (["ArrowLeft", "ArrowRight"].includes(event.key) && !byId("view-experts").hidden && event.target.closest("#view-experts")) {
      stepExpert(event.key === "ArrowRight" ? 1 : -1);
    }
  });

  // Start
  for (const menu of [expertLayer, classLayer]) {
    fill(menu, ...data.layers.map((layer, depth) => make("option", { value: String(depth), textContent: layer.name })));
    menu.value = String(data.layers.length - 1);
  }
  fill(byId("class-names"), ...data.classes.map((name) => make("option", { value: name })));
  const seen = data.classes.filter((_, label) => data.counts[label] > 0);
  classA.value = seen[0];
  classB.value = seen[1] ?? seen[0];
  fill(byId("thumbs"), ...thumbs);
  offerExperts();
  drawExpert();
  drawClasses();
  if (thumbs.length) select(0);
  search();
})();
