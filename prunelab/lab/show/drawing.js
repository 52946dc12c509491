// A drawing that is pruned at the pace of the hand. Everything it shows was measured before: no kernel, no network.
(() => {
  "use strict";
  const STAYS = [0, 158, 115], TAKEN = [128, 135, 148]; // a weight above zero, below zero
  const MOST = 99; // steps for which a weight can stay
  const bytes = (text) => Uint8Array.from(atob(text.slice(text.indexOf(",") + 1)), (c) => c.charCodeAt(0));
  const json = (text) => JSON.parse(new TextDecoder().decode(bytes(text)));
  const number = (n) => n.toLocaleString("en");
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // The colour of a signed byte, as one 32-bit pixel (alpha, blue, green, red): the longer it stays, the fuller.
  const TONES = Uint32Array.from({ length: 256 }, (_, i) => {
    const value = (i << 24) >> 24, [r, g, b] = value > 0 ? STAYS : TAKEN;
    const alpha = Math.round(255 * (0.3 + 0.7 * (Math.abs(value) / MOST) ** 2));
    return ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
  const HOLE = ((26 << 24) | (TAKEN[2] << 16) | (TAKEN[1] << 8) | TAKEN[0]) >>> 0; // where a weight was

  function element(tag, className, parent, text = "") {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    parent.append(made);
    return made;
  }

  // One of several named choices, as native radio buttons that look like one switch; calls back with the value.
  function choice(parent, legend, options, chosen, changed) {
    const set = element("fieldset", "pl-choice", parent), name = `pl${Math.random().toString(36).slice(2)}`;
    element("legend", "pl-hidden", set, legend);
    for (const [value, text] of options) {
      const label = element("label", "", set), input = element("input", "", label);
      Object.assign(input, { type: "radio", name, value, checked: value === chosen });
      element("span", `pl-${value}`, label, text);
      input.addEventListener("change", () => changed(value));
    }
  }

  function bring(root) {
    const facts = json(root.dataset.facts), signed = new Int8Array(bytes(root.dataset.weights).buffer);
    const ways = Object.fromEntries(facts.ways.map((way) => [way.name, way]));
    const state = { way: "weights", read: Object.keys(ways.weights.fresh).length ? "fresh" : "stale" };
    const at = { weights: facts.start, filters: Math.floor(ways.filters.steps / 2) };
    root.dataset.alive = "";
    root.querySelector(".pl-still").hidden = true;
    const live = document.createElement("div");
    live.className = "pl-live";
    root.querySelector("details").before(live);

    const bar = element("div", "pl-bar", live);
    const options = [["weights", "Weights become zero"], ["filters", "Filters are removed"]];
    choice(bar, "What goes", options, state.way, (way) => turn(way));
    const pull = element("label", "pl-pull", bar), pulled = element("span", "pl-pulled", pull);
    const slider = element("input", "", pull);
    slider.type = "range";
    slider.setAttribute("aria-label", "How much goes");
    const said = element("p", "pl-said", live), heard = element("p", "pl-hidden", live);
    heard.setAttribute("aria-live", "polite");
    const net = element("div", "pl-net", live);
    net.setAttribute("role", "img");
    const layers = facts.layers.map((layer) => ({ ...layer, ...board(layer) }));
    let start = 0;
    for (const layer of layers) {
      layer.start = start;
      start += layer.rows * layer.columns * layer.kernel[0] * layer.kernel[1];
    }
    const key = element("p", "pl-key", live);
    key.innerHTML = "Each square is a weight: <i></i> green above zero, <b></b> grey below; the fuller, the larger.";
    const stats = {};
    const list = element("div", "pl-stats", live);
    const shown = { weights: "weights left", parameters: "parameters", bytes: "bytes stored", macs: "MACs a digit" };
    for (const [name, text] of Object.entries(shown)) {
      const pair = element("div", "", list);
      element("span", "", pair, text);
      stats[name] = element("strong", "", pair);
    }
    const reads = element("div", "pl-reads", live), left = element("div", "pl-score", reads);
    const score = element("p", "pl-accuracy", left);
    if (state.read === "fresh") {
      const kinds = [["fresh", "Fresh statistics"], ["stale", "Old statistics"]];
      choice(left, "BatchNorm's statistics", kinds, "fresh", (kind) => { state.read = kind; later(); });
    }
    const chart = plot(left);
    const digits = pictures(reads);

    // One layer's place: two lines of text, and under them a frame as large as the whole layer, with a canvas.
    function board(layer) {
      const figure = element("div", "pl-layer", net);
      element("strong", "", figure, layer.name);
      const caption = element("span", "", figure), frame = element("div", "pl-frame", figure);
      return { frame, caption, canvas: element("canvas", "", frame) };
    }

    // The numbers of those that are left of a group at the present step; all, for a layer's own rows or columns.
    function stay(group, count) {
      const leaves = state.way === "filters" && facts.leaves[group];
      const all = Array.from({ length: count }, (_, i) => i);
      return leaves ? all.filter((i) => leaves[i] > at.filters) : all;
    }

    function paint(layer) {
      const rows = stay(layer.filters, layer.rows), columns = stay(layer.inputs, layer.columns);
      const [h, w] = layer.kernel, width = columns.length * w, height = rows.length * h;
      const gone = state.way === "weights" ? at.weights : 0;
      const context = layer.canvas.getContext("2d");
      if (layer.canvas.width !== width || layer.canvas.height !== height) Object.assign(layer.canvas, { width, height });
      const image = context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
      let weights = 0;
      let place = 0;
      for (const row of rows) for (let y = 0; y < h; y++) for (const column of columns) {
        let from = layer.start + ((row * layer.columns + column) * h + y) * w;
        for (let x = 0; x < w; x++, from++) {
          const value = signed[from], stays = value > gone || -value > gone;
          weights += stays;
          pixels[place++] = stays ? TONES[value & 255] : HOLE;
        }
      }
      context.putImageData(image, 0, 0);
      layer.canvas.style.width = `${width * scale}px`;
      layer.canvas.style.height = `${height * scale}px`;
      layer.caption.textContent = state.way === "filters" ? `${rows.length} × ${columns.length}` : number(weights);
    }

    // How large a square is: as large as the room lets the layers stand in a row, but no smaller than a pixel.
    let scale = 1;
    function fit() {
      const wide = layers.reduce((sum, l) => sum + l.columns * l.kernel[1], 0), between = 20 * layers.length + 44;
      scale = Math.max(1, (net.clientWidth - between) / wide);
      for (const { frame, rows, columns, kernel: [h, w] } of layers) {
        frame.style.width = `${columns * w * scale}px`;
        frame.style.height = `${rows * h * scale}px`;
      }
    }

    // Accuracy against what is gone: two lines with their measured points, and where we are.
    function plot(parent) {
      const box = element("div", "pl-chart", parent);
      let drawn, mark;
      return (way, step, read) => {
        const x = (s) => 38 + (s / (way.steps - 1)) * 256, y = (a) => 104 - 0.96 * a;
        const here = parseFloat(way[read][step.near][0].slice(1));
        const move = () => {
          mark[0].setAttribute("d", `M${x(step.now)} 8V104`);
          mark[1].setAttribute("cx", x(step.near));
          mark[1].setAttribute("cy", y(here));
        };
        if (drawn === way.name + read) return move();
        drawn = way.name + read;
        const lines = ["stale", "fresh"].filter((kind) => Object.keys(way[kind]).length).map((kind) => {
          const points = Object.entries(way[kind]).map(([s, [a]]) => [x(s), y(parseFloat(a.slice(1)))]);
          const dots = points.map(([px, py]) => `<circle cx="${px}" cy="${py}" r="2.2"/>`).join("");
          return `<g class="pl-${kind}${kind === read ? " pl-now" : ""}"><polyline points="${points.join(" ")}"/>${dots}</g>`;
        });
        box.innerHTML = `<svg viewBox="0 0 300 124" role="img" aria-label="Accuracy against the share that is gone.">
          <g class="pl-axes"><path d="M38 8H294M38 56H294M38 104H294"/>
          <text x="32" y="11">100 %</text><text x="32" y="59">50 %</text><text x="32" y="107">0 %</text>
          <text x="38" y="120" class="pl-first">nothing gone</text>
          <text x="294" y="120">${Math.round(100 * share(way, way.steps - 1))} % gone</text></g>
          <path class="pl-here"/>${lines.join("")}<circle class="pl-spot" r="4.5"/></svg>`;
        mark = box.querySelectorAll(".pl-here, .pl-spot");
        move();
      };
    }

    // The digits: each drawn once, as a mask that is filled with the page's own ink.
    function pictures(parent) {
      const side = facts.side, grey = bytes(facts.digits), box = element("ul", "pl-digits", parent);
      box.setAttribute("aria-label", "What it reads, digit by digit; a ✗ stands before what is wrong");
      return facts.truth.map((_, i) => {
        const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
        canvas.width = canvas.height = side;
        const image = context.createImageData(side, side);
        for (let k = 0; k < side * side; k++) image.data[4 * k + 3] = grey[i * side * side + k];
        context.putImageData(image, 0, 0);
        const item = element("li", "", box), picture = element("span", "pl-digit", item);
        picture.style.setProperty("--picture", `url(${canvas.toDataURL()})`);
        return { item, read: element("strong", "", item), truth: element("small", "", item) };
      });
    }

    const notes = {
      fresh: `; BatchNorm's statistics estimated again on ${number(facts.statistics)} training images`,
      stale: state.read === "fresh" ? "; BatchNorm's statistics as the dense network left them" : "",
    };
    const share = (way, step) => (way.name === "weights" ? step / 100 : step / way.steps);

    function draw() {
      const way = ways[state.way], now = at[state.way], read = way[state.read];
      const near = Object.keys(read).map(Number).reduce((a, b) => (Math.abs(b - now) < Math.abs(a - now) ? b : a));
      const percent = (step) => `${Math.round(1000 * share(way, step)) / 10} %`;
      Object.assign(slider, { min: 0, max: way.steps - 1, step: 1, value: now });
      slider.style.setProperty("--at", `${(100 * now) / (way.steps - 1)}%`);
      layers.forEach(paint);
      for (const [name, place] of Object.entries(stats)) {
        const left = way[name][now] / way[name][0];
        place.innerHTML = `${number(way[name][now])} <small>${left < 1 ? `${(100 * left).toPrecision(3)} %` : now ? "as before" : ""}</small>`;
        place.className = left < 1 || !now ? "" : "pl-same";
      }
      const [accuracy, labels] = read[near];
      const what = state.way === "weights" ? "of the weights are zero" : "of the filters are removed";
      pulled.textContent = `${percent(now)} ${what}`;
      slider.setAttribute("aria-valuetext", pulled.textContent);
      chart(way, { now, near }, state.read);
      speak(way, now);
      const place = `${state.way} ${state.read} ${near} ${near === now}`;
      if (place === state.place) return; // the same measurement: nothing else is new
      state.place = place;
      score.innerHTML = `<strong>${accuracy}</strong> of ${number(facts.count)} digits right at <b>${percent(near)}</b>` +
        `<small>${near === now ? "measured" : "the nearest measured"}, nothing retrained${notes[state.read]}</small>`;
      digits.forEach(({ item, read: line, truth }, i) => {
        const wrong = labels[i] !== facts.truth[i];
        item.className = wrong ? "pl-wrong" : "";
        line.textContent = wrong ? `✗ ${labels[i]}` : labels[i];
        truth.textContent = wrong ? `is ${facts.truth[i]}` : "";
      });
      said.textContent = state.way === "weights"
        ? "The weakest go first. A zero is still stored, and still multiplied: only the first number falls."
        : "The weakest of every layer go: a row here, a column in the next layer. Everything falls.";
    }

    // For those who listen: the picture in words, and once the hand rests, a sentence.
    function speak(way, now) {
      const words = `The network's layers. ${pulled.textContent}: ${number(way.weights[now])} weights are left.`;
      net.setAttribute("aria-label", words);
      clearTimeout(state.speaks);
      state.speaks = setTimeout(() => {
        heard.textContent = `${words} ${number(way.bytes[now])} bytes. ${score.innerText.replace("\n", "; ")}.`;
      }, 600);
    }

    // One picture a frame, however fast the hand is.
    function later() {
      state.waits ??= requestAnimationFrame(() => { state.waits = undefined; draw(); });
    }

    // The other way to prune; its filters leave one by one, unless the reader wants no motion.
    function turn(way) {
      state.way = way;
      const goal = at[way];
      if (way === "weights" || still.matches) return later();
      let step = 0;
      at[way] = 0;
      (function leave() {
        if (state.way !== way || at[way] !== step) return; // the reader took over
        draw();
        if (step < goal) { at[way] = ++step; setTimeout(() => requestAnimationFrame(leave), 24); }
      })();
    }

    // In JupyterLab the arrow keys would leave the cell: it looks for this mark from the focused element upwards.
    for (const control of root.querySelectorAll("input, summary")) control.dataset.lmSuppressShortcuts = "true";
    slider.addEventListener("input", () => { at[state.way] = Number(slider.value); later(); });
    new ResizeObserver(() => { fit(); draw(); }).observe(net);
  }

  document.querySelectorAll(".pl-drawing:not([data-alive])").forEach(bring);
})();
