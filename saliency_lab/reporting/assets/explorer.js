// The explorer: images and maps, decoded once and painted on canvases.
const source = document.getElementById("explorer-data");
if (source) {
  const data = JSON.parse(source.textContent);
  const [channels, height, width] = data.shape;
  const [rows, columns] = data.mapShape; // of the maps, which may be averaged over blocks of pixels
  const across = Math.ceil(width / columns);
  const down = Math.ceil(height / rows);
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
  const decode = (file) => new Promise((done, failed) => {
    const picture = new Image();
    picture.onload = () => {
      const canvas = make("canvas", { width, height });
      const context = canvas.getContext("2d");
      context.drawImage(picture, 0, 0);
      done(context.getImageData(0, 0, width, height).data);
    };
    picture.onerror = failed;
    picture.src = `data:image/jpeg;base64,${file}`;
  });
  const readImages = async (source) => {
    if (source.files) return Promise.all(source.files.map(decode));
    const depth = channels === 3 ? 3 : 1;
    const packed = await inflate(source.pixels);
    return data.classes.map((_, image) => {
      const out = new Uint8ClampedArray(4 * pixels).fill(255);
      for (let pixel = 0; pixel < pixels; pixel++) {
        for (let channel = 0; channel < 3; channel++) {
          out[4 * pixel + channel] = packed[(image * pixels + pixel) * depth + (depth === 3 ? channel : 0)];
        }
      }
      return out;
    });
  };
  const breakable = (name) => name.split(/(?<=_)/).flatMap((part) => [part, make("wbr")]);
  const words = (name) => name.replaceAll("_", " ");
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const inflate = async (text) => {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const number = (value, digits = 3) => {
    if (value === null) return "undefined";
    const size = Math.abs(value);
    const text = size >= 1e-3 && size < 1e3 ? value.toPrecision(digits) : String(Number(value.toPrecision(digits)));
    return text.replaceAll("-", "−");
  };

  const swatch = (model) => document.querySelector(`#controls [name=model][value="${model}"] ~ .swatch`).cloneNode(true);
  const colours = { signed: bytes(data.colours.signed), magnitude: bytes(data.colours.magnitude) };
  const byName = (list) => new Map(list.map((each) => [`${each.model}\n${each.method}`, each]));
  const maps = byName(data.maps);
  const attackedMaps = byName(data.attacked?.maps ?? []);
  let images = null;
  let attackedImages = null; // by model; decoded when they are asked for
  const readAttacked = async () => {
    attackedImages ??= await Promise.all(data.attacked.images.map((source) => source && readImages(source)));
  };

  const mapOf = (model, method, ask) =>
    (ask.attacked ? attackedMaps : maps).get(`${data.models[model]}\n${data.methods[method]}`);
  const imageOf = (model, image, ask) => (ask.attacked ? attackedImages[model]?.[image] : images[image]);
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
    attacked: value("shown") === "attacked",
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

  const paintImage = (canvas, values) => {
    canvas.getContext("2d").putImageData(new ImageData(Uint8ClampedArray.from(values), width, height), 0, 0);
  };
  const limitsOf = (ask, map, image) => {
    if (ask.scale === "all") return map.signed ? data.limits.signed : data.limits.magnitude;
    if (ask.scale === "method") return data.limits.methods[data.methods.indexOf(map.method)];
    return [map.low[image], map.high[image]];
  };
  const placeOf = (y, x) => Math.floor(y / down) * columns + Math.floor(x / across);
  const paintMap = async (canvas, map, model, image, ask) => {
    const levels = await levelsOf(map);
    const context = canvas.getContext("2d");
    const out = context.createImageData(width, height);
    const signed = map.signed && ask.kind === "signed";
    const table = signed ? colours.signed : colours.magnitude;
    const step = map.scale[image] / 127;
    let [low, high] = limitsOf(ask, map, image);
    if (map.signed && !signed) low = 0;
    const first = image * rows * columns;
    const shown = imageOf(model, image, ask);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const level = levels[first + placeOf(y, x)];
        const value = map.signed && !signed ? Math.abs(level * step) : level * step;
        const share = Math.max(0, Math.min(1, (value - low) / (high - low)));
        const entry = 3 * Math.round(255 * share);
        const strength = signed ? Math.abs(2 * share - 1) : share;
        const cover = level === -128 ? 1 : 1 - ask.blend * (ask.blend === 1 ? 1 : 1 - strength);
        const at = 4 * (y * width + x);
        const grey = (shown[at] + shown[at + 1] + shown[at + 2]) / 3;
        for (let channel = 0; channel < 3; channel++) {
          // at the end of the slider the image itself, in its colours; before it, a grey one below the map
          const shade = ask.blend === 1 ? shown[at + channel] : 76.5 + 0.7 * grey;
          const colour = level === -128 ? 191 : table[entry + channel]; // grey where the map is undefined
          out.data[at + channel] = cover * colour + (1 - cover) * shade;
        }
        out.data[at + 3] = 255;
      }
    }
    context.putImageData(out, 0, 0);
  };
  const paintScale = (canvas, table) => {
    const context = canvas.getContext("2d");
    const out = context.createImageData(canvas.width, 1);
    for (let x = 0; x < canvas.width; x++) {
      const entry = 3 * Math.round((255 * x) / (canvas.width - 1));
      for (let channel = 0; channel < 3; channel++) out.data[4 * x + channel] = table[entry + channel];
      out.data[4 * x + 3] = 255;
    }
    context.putImageData(out, 0, 0);
  };
  const paintBar = (ask) => {
    const shown = data.maps.filter((map) => ask.methods.includes(data.methods.indexOf(map.method)));
    const all = ask.scale === "all";
    const signed = shown.some((map) => map.signed);
    byId("legend-signed").hidden = !signed;
    byId("legend-unsigned").hidden = shown.every((map) => map.signed);
    paintScale(byId("scale-bar"), ask.kind === "signed" ? colours.signed : colours.magnitude);
    const end = all ? number(data.limits.signed[1]) : "max";
    byId("bar-low").textContent = ask.kind === "signed" ? `−${end}` : "0";
    byId("bar-high").textContent = end;
    paintScale(byId("unsigned-bar"), colours.magnitude);
    const [low, high] = data.limits.magnitude;
    const digits = 3 + Math.max(0, Math.floor(Math.log10(high / (high - low)))); // which distinguish the ends
    byId("unsigned-low").textContent = all ? number(low, digits) : "low";
    byId("unsigned-high").textContent = all ? number(high, digits) : "high";
  };

  // --- cards ---------------------------------------------------------------------------------

  let tiles = [];
  const prediction = (model, image, attacked) => {
    const found = (attacked ? data.attacked : data).predictions[model];
    if (!found) return null;
    if (found.probabilities[image] === null) {
      return { state: "", text: "undefined", inWords: "predicts nothing, because its output is not a number" };
    }
    const right = found.classes[image] === data.classes[image];
    const text = `${found.classes[image]}, ${(100 * found.probabilities[image]).toFixed(0)} %`;
    return {
      state: right ? "right" : "missed",
      text: `${right ? "✓" : "✗"} ${text}`,
      inWords: `predicts ${text}, which is ${right ? "right" : "wrong"}`,
    };
  };
  const predicted = (model, image, attacked = false) => {
    const found = prediction(model, image, attacked);
    if (!found) return [];
    const when = attacked ? `attacked by ${data.attacked.name}: ` : "";
    const textContent = `${attacked ? "→ " : ""}${found.text}`;
    return [make("span", { className: `state ${found.state}`, textContent, title: `${when}${found.inWords}` })];
  };
  const MARKS = { wrong: "wrong already", changed: "changed", right: "holds" };

  const tile = (model, method, image, ask) => {
    const map = mapOf(model, method, ask);
    if (!map) return make("td", { className: "none", textContent: "none" });
    const canvas = make("canvas", { width, height });
    const name = `${words(data.methods[method])}, ${data.models[model]}, image ${image}`;
    const button = make("button", { type: "button", className: "tile", ariaLabel: `Enlarge: ${name}` }, canvas);
    button.addEventListener("click", () => zoom(model, method, image));
    tiles.push({ canvas, map, model, image });
    const cell = make("td", {}, button);
    if (ask.metric && !ask.attacked) {
      cell.append(make("span", { className: "score", textContent: number(scoreOf(ask.metric, model, method, image)) }));
    }
    return cell;
  };
  const attackedRow = (image, ask) => {
    const cells = ask.models.map((model) => {
      const values = imageOf(model, image, ask);
      if (!values) return make("td", { className: "none", textContent: "none" });
      const label = `Image ${image}, attacked on ${data.models[model]}`;
      const canvas = make("canvas", { width, height, role: "img", ariaLabel: label });
      paintImage(canvas, values);
      return make("td", {}, make("span", { className: "tile" }, canvas));
    });
    return make("tr", {}, make("th", { scope: "row", textContent: "attacked image" }), ...cells);
  };
  const card = (image, ask) => {
    const label = `Image ${image}, class ${data.classes[image]}`;
    const picture = make("canvas", { width, height, role: "img", ariaLabel: label });
    paintImage(picture, images[image]);
    const head = make("tr", {}, make("td"));
    for (const model of ask.models) {
      const mark = ask.attacked ? "" : state(ask.attack?.eps ? ask.attack : null, model, image);
      const heading = make("th", { scope: "col" }, 
        make("span", {}, swatch(model), make("span", {}, ...breakable(data.models[model]))), ...predicted(model, image));
      if (ask.attacked) heading.append(...predicted(model, image, true));
      if (mark) heading.append(make("span", { className: `state ${mark}`, textContent: MARKS[mark] }));
      head.append(heading);
    }
    const rows = ask.methods.map((method) =>
      make("tr", {}, make("th", { scope: "row", textContent: words(data.methods[method]) }),
        ...ask.models.map((model) => tile(model, method, image, ask))),
    );
    if (ask.attacked) rows.unshift(attackedRow(image, ask));
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
    return Promise.all(tiles.map(({ canvas, map, model, image }) => paintMap(canvas, map, model, image, ask)));
  };
  const rebuild = async () => {
    if (asked().attacked) await readAttacked();
    const ask = asked();
    if (ask.attacked && !attackedImages) return; // a later call draws
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
    const map = mapOf(model, method, ask);
    const attackedBy = ask.attacked ? `, attacked by ${data.attacked.name}` : "";
    const picture = make("canvas", { width, height, role: "img", ariaLabel: `The image${attackedBy}` });
    const large = make("canvas", { width, height, role: "img", ariaLabel: "The map" });
    paintImage(picture, imageOf(model, image, ask));
    paintMap(large, map, model, image, ask);
    const scores = (ask.attacked ? [] : data.metrics).map(
      (metric) => `${words(metric.name)} ${number(scoreOf(metric, model, method, image))}`,
    );
    byId("zoom-title").textContent =
      `${words(data.methods[method])} on ${data.models[model]}: image ${image}, class ${data.classes[image]}${attackedBy}`;
    dialog.querySelector(".zoomed").replaceChildren(picture, large);
    const found = prediction(model, image, ask.attacked);
    byId("zoom-text").textContent = [...(found ? [found.inWords] : []), `largest magnitude ${number(map.scale[image])}`, ...scores].join(" · ");
    large.addEventListener("pointermove", async (event) => {
      const levels = await levelsOf(map);
      const [x, y] = [Math.floor((event.offsetX / large.clientWidth) * width), Math.floor((event.offsetY / large.clientHeight) * height)];
      const level = levels[image * rows * columns + placeOf(Math.min(y, height - 1), Math.min(x, width - 1))];
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
      paintImage(canvas, images[image]);
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
  byId("further").addEventListener("click", async () => {
    const before = cards.children.length;
    limit += PAGE;
    await rebuild();
    cards.children[before]?.querySelector("button")?.focus();
  });
  readImages(data.images).then((found) => {
    images = found;
    form.hidden = byId("bar").hidden = false;
    addThumbs();
    return rebuild();
  }).then(() => { document.documentElement.dataset.ready = "yes"; });
}
