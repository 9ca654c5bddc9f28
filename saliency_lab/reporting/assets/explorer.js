// The explorer: images and maps, decoded once and painted on canvases.
const source = document.getElementById("explorer-data");
if (source) {
  const data = JSON.parse(source.textContent);
  const [channels, height, width] = data.shape;
  const depth = channels === 3 ? 3 : 1;
  const pixels = height * width;
  const count = data.classes.length;
  const PAGE = 12;

  const byId = (id) => document.getElementById(id);
  const form = byId("controls");
  const cards = byId("cards");
  const picked = new Set();
  let limit = PAGE;

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const words = (name) => name.replaceAll("_", " ");
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const inflate = async (text) => {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const number = (value) => {
    if (value === null) return "undefined";
    const size = Math.abs(value);
    const text = size >= 1e-3 && size < 1e3 ? value.toPrecision(3) : String(Number(value.toPrecision(3)));
    return text.replaceAll("-", "−");
  };

  const colours = { signed: bytes(data.colours.signed), magnitude: bytes(data.colours.magnitude) };
  const maps = new Map(data.maps.map((each) => [`${each.model}\n${each.method}`, each]));
  let images = null;

  const mapOf = (model, method) => maps.get(`${data.models[model]}\n${data.methods[method]}`);
  const levelsOf = async (map) => {
    map.decoded ??= inflate(map.levels).then((found) => new Int8Array(found.buffer));
    return map.decoded;
  };

  // --- what is asked for ---------------------------------------------------------------------

  const chosen = (name) =>
    [...form.querySelectorAll(`[name=${name}]:checked`)].map((input) => Number(input.value));
  const value = (id) => byId(id)?.value ?? "";
  const asked = () => ({
    models: chosen("model"),
    methods: chosen("method"),
    blend: Number(value("blend")) / 100,
    scale: value("scale"),
    kind: value("values"),
    label: value("class"),
    attack: value("attack") === "" ? null : data.attacks[value("attack")],
    outcome: value("outcome"),
    metric: value("metric") === "" ? null : data.metrics[value("metric")],
    order: value("order"),
  });

  const cleanOf = (attack) => data.attacks.find((each) => each.attack === attack.attack && each.eps === 0);
  const right = (attack, model, image) => attack?.robust[model]?.[image];
  const state = (attack, model, image) => {
    if (!attack) return "";
    const before = right(cleanOf(attack), model, image);
    const after = right(attack, model, image);
    if (before === undefined || after === undefined) return "";
    return before === "0" ? "wrong" : after === "0" ? "changed" : "right";
  };
  const passes = (ask, image) => {
    if (picked.size && !picked.has(image)) return false;
    if (ask.label && data.classes[image] !== ask.label) return false;
    const states = ask.models.map((model) => state(ask.attack, model, image));
    if (ask.outcome === "changed") return states.includes("changed");
    if (ask.outcome === "changed-all") return states.length > 0 && states.every((each) => each === "changed");
    if (ask.outcome === "right") return states.length > 0 && states.every((each) => each === "right");
    if (ask.outcome === "wrong") return states.includes("wrong");
    return true;
  };
  const scoreOf = (metric, model, method, image) => metric.values[model][method]?.[image] ?? null;
  const meanScore = (ask, image) => {
    const found = ask.models
      .flatMap((model) => ask.methods.map((method) => scoreOf(ask.metric, model, method, image)))
      .filter((score) => score !== null);
    return found.length ? found.reduce((sum, score) => sum + score, 0) / found.length : null;
  };
  const chooseImages = (ask) => {
    const fitting = [...Array(count).keys()].filter((image) => passes(ask, image));
    if (!ask.metric) return fitting;
    const sign = (ask.metric.better === "lower" ? 1 : -1) * (ask.order === "worst" ? -1 : 1);
    const scores = new Map(fitting.map((image) => [image, meanScore(ask, image)]));
    return fitting.sort((a, b) => {
      const [first, second] = [scores.get(a), scores.get(b)];
      if (first === null || second === null) return (first === null) - (second === null);
      return sign * (first - second);
    });
  };

  // --- painting ------------------------------------------------------------------------------

  const paintImage = (canvas, image) => {
    const context = canvas.getContext("2d");
    const out = context.createImageData(width, height);
    for (let pixel = 0; pixel < pixels; pixel++) {
      for (let channel = 0; channel < 3; channel++) {
        out.data[4 * pixel + channel] = images[(image * pixels + pixel) * depth + (depth === 3 ? channel : 0)];
      }
      out.data[4 * pixel + 3] = 255;
    }
    context.putImageData(out, 0, 0);
  };
  const limitOf = (ask, map, image) => {
    if (ask.scale === "all") return data.limits.all;
    if (ask.scale === "method") return data.limits.methods[data.methods.indexOf(map.method)];
    return map.clip[image];
  };
  const paintMap = async (canvas, map, image, ask) => {
    const levels = await levelsOf(map);
    const context = canvas.getContext("2d");
    const out = context.createImageData(width, height);
    const table = colours[ask.kind];
    const step = map.scale[image] / 127 / limitOf(ask, map, image);
    for (let pixel = 0; pixel < pixels; pixel++) {
      const level = levels[image * pixels + pixel];
      const share = Math.max(-1, Math.min(1, level * step));
      const entry = 3 * Math.round(255 * (ask.kind === "signed" ? (share + 1) / 2 : Math.abs(share)));
      for (let channel = 0; channel < 3; channel++) {
        const shade = images[(image * pixels + pixel) * depth + (depth === 3 ? channel : 0)];
        const colour = level === -128 ? 191 : table[entry + channel]; // grey where the map is undefined
        out.data[4 * pixel + channel] = colour + ask.blend * (shade - colour);
      }
      out.data[4 * pixel + 3] = 255;
    }
    context.putImageData(out, 0, 0);
  };
  const paintBar = (ask) => {
    const canvas = byId("scale-bar");
    const context = canvas.getContext("2d");
    const out = context.createImageData(canvas.width, 1);
    for (let x = 0; x < canvas.width; x++) {
      const entry = 3 * Math.round((255 * x) / (canvas.width - 1));
      for (let channel = 0; channel < 3; channel++) out.data[4 * x + channel] = colours[ask.kind][entry + channel];
      out.data[4 * x + 3] = 255;
    }
    context.putImageData(out, 0, 0);
    const end = ask.scale === "all" ? number(data.limits.all) : "max";
    byId("bar-low").textContent = ask.kind === "signed" ? `−${end}` : "0";
    byId("bar-high").textContent = end;
  };

  // --- cards ---------------------------------------------------------------------------------

  let tiles = [];
  const MARKS = { wrong: "wrong already", changed: "changed", right: "holds" };

  const tile = (model, method, image, ask) => {
    const map = mapOf(model, method);
    if (!map) return make("td", { className: "none", textContent: "none" });
    const canvas = make("canvas", { width, height });
    const name = `${words(data.methods[method])}, ${data.models[model]}, image ${image}`;
    const button = make("button", { type: "button", className: "tile", ariaLabel: `Enlarge: ${name}` }, canvas);
    button.addEventListener("click", () => zoom(model, method, image));
    tiles.push({ canvas, map, image });
    const cell = make("td", {}, button);
    if (ask.metric) {
      cell.append(make("span", { className: "score", textContent: number(scoreOf(ask.metric, model, method, image)) }));
    }
    return cell;
  };
  const card = (image, ask) => {
    const label = `Image ${image}, class ${data.classes[image]}`;
    const picture = make("canvas", { width, height, role: "img", ariaLabel: label });
    paintImage(picture, image);
    const head = make("tr", {}, make("td"));
    for (const model of ask.models) {
      const mark = state(ask.attack?.eps ? ask.attack : null, model, image);
      const heading = make("th", { scope: "col" }, 
        make("span", {}, make("span", { className: `swatch m${data.hues[model]}` }), make("span", { textContent: data.models[model] })));
      if (mark) heading.append(make("span", { className: `state ${mark}`, textContent: MARKS[mark] }));
      head.append(heading);
    }
    const rows = ask.methods.map((method) =>
      make("tr", {}, make("th", { scope: "row", textContent: words(data.methods[method]) }),
        ...ask.models.map((model) => tile(model, method, image, ask))),
    );
    const table = make("table", {}, make("caption", { className: "hidden", textContent: `Maps of image ${image}` }),
      make("thead", {}, head), make("tbody", {}, ...rows));
    const title = make("h3", {}, make("span", { className: "more", textContent: `#${image}` }), ` ${data.classes[image]}`);
    if (ask.metric) {
      title.append(make("span", { className: "mean", textContent: `mean ${number(meanScore(ask, image))}` }));
    }
    return make("li", { className: "sample" },
      make("div", { className: "original" }, picture, title),
      make("div", { className: "scroll" }, table));
  };

  const repaint = () => {
    const ask = asked();
    paintBar(ask);
    return Promise.all(tiles.map(({ canvas, map, image }) => paintMap(canvas, map, image, ask)));
  };
  const rebuild = () => {
    const ask = asked();
    const fitting = chooseImages(ask);
    tiles = [];
    cards.replaceChildren(...fitting.slice(0, limit).map((image) => card(image, ask)));
    byId("further").hidden = fitting.length <= limit;
    byId("further").textContent = `Show more (${fitting.length - Math.min(limit, fitting.length)} left)`;
    byId("status").textContent = fitting.length ? `${fitting.length} of ${count} images` : "No image fits; change a filter";
    return repaint();
  };

  // --- one map, large ------------------------------------------------------------------------

  const dialog = byId("zoom");
  const zoom = (model, method, image) => {
    const ask = asked();
    const map = mapOf(model, method);
    const picture = make("canvas", { width, height, role: "img", ariaLabel: "The image" });
    const large = make("canvas", { width, height, role: "img", ariaLabel: "The map" });
    paintImage(picture, image);
    paintMap(large, map, image, ask);
    const scores = data.metrics.map(
      (metric) => `${words(metric.name)} ${number(scoreOf(metric, model, method, image))}`,
    );
    byId("zoom-title").textContent =
      `${words(data.methods[method])} on ${data.models[model]}: image ${image}, class ${data.classes[image]}`;
    dialog.querySelector(".zoomed").replaceChildren(picture, large);
    byId("zoom-text").textContent = [`largest magnitude ${number(map.scale[image])}`, ...scores].join(" · ");
    large.addEventListener("pointermove", async (event) => {
      const levels = await levelsOf(map);
      const [x, y] = [Math.floor((event.offsetX / large.clientWidth) * width), Math.floor((event.offsetY / large.clientHeight) * height)];
      const level = levels[image * pixels + Math.min(y, height - 1) * width + Math.min(x, width - 1)];
      const value = level === -128 ? "undefined" : number((level * map.scale[image]) / 127);
      byId("readout").textContent = `row ${y}, column ${x}: ${value}`;
    });
    byId("readout").textContent = "Point at the map to read its values.";
    const fitting = chooseImages(ask);
    const place = fitting.indexOf(image);
    for (const [id, step] of [["previous", -1], ["next", 1]]) {
      byId(id).disabled = fitting[place + step] === undefined;
      byId(id).onclick = () => zoom(model, method, fitting[place + step]);
    }
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") byId("previous").click();
    if (event.key === "ArrowRight") byId("next").click();
  });
  byId("close").addEventListener("click", () => dialog.close());

  // --- picking -------------------------------------------------------------------------------

  const thumbs = form.querySelector(".thumbs");
  const showPicked = () => {
    [...thumbs.children].forEach((button, image) => button.setAttribute("aria-pressed", String(picked.has(image))));
  };
  const addThumbs = () => {
    for (let image = 0; image < count; image++) {
      const canvas = make("canvas", { width, height });
      paintImage(canvas, image);
      const button = make("button", { type: "button", ariaLabel: `Image ${image}, class ${data.classes[image]}` }, canvas);
      button.addEventListener("click", () => {
        if (!picked.delete(image)) picked.add(image);
        showPicked();
        rebuild();
      });
      thumbs.append(button);
    }
    showPicked();
  };

  // --- wiring --------------------------------------------------------------------------------

  form.addEventListener("submit", (event) => event.preventDefault());
  let waiting = null; // what the next frame does: however many inputs come before it, once
  byId("explorer-section").addEventListener("input", (event) => {
    const paints = ["blend", "scale", "values"].includes(event.target.id);
    if (!paints) limit = PAGE;
    if (!waiting) requestAnimationFrame(() => { waiting(); waiting = null; });
    if (!paints || !waiting) waiting = paints ? repaint : rebuild;
  });
  byId("reset").addEventListener("click", () => {
    form.reset();
    picked.clear();
    showPicked();
    limit = PAGE;
    rebuild();
  });
  byId("further").addEventListener("click", () => {
    const before = cards.children.length;
    limit += PAGE;
    rebuild();
    cards.children[before]?.querySelector("button")?.focus();
  });
  inflate(data.images).then((found) => {
    images = found;
    form.hidden = byId("bar").hidden = false;
    addThumbs();
    return rebuild();
  }).then(() => { document.documentElement.dataset.ready = "yes"; });
}
