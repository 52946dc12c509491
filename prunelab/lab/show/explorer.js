// Bring to life every explorer of the page that is not alive yet: unpack its pictures, show its controls, listen.
(() => {
  for (const root of document.querySelectorAll(".pl-explorer")) {
    if (!root.alive) { root.alive = true; start(root); }
  }

  async function start(root) {
    const find = (what, where = root) => where.querySelector(what);
    const plan = JSON.parse(find("[type='application/json']").textContent);
    const packed = Uint8Array.from(atob(plan.pictures), (letter) => letter.charCodeAt(0));
    const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const { layers, states } = await new Response(unpacked).json();

    const stage = find(".pl-picture");
    stage.innerHTML = plan.frame;
    const svg = find("svg", stage), paint = find("g", stage), drawn = [];
    const panel = document.createElement("div");
    panel.innerHTML = plan.controls;
    root.prepend(panel);
    const controls = [...panel.querySelectorAll(".pl-range, fieldset")];
    window.prunelabExplorers = (window.prunelabExplorers ?? 0) + 1;
    for (const radio of panel.querySelectorAll("[type='radio']")) radio.name += `-${window.prunelabExplorers}`;

    const layer = (number) => {
      const made = document.createElementNS(svg.namespaceURI, "g");
      made.innerHTML = layers[number];
      return made;
    };
    const show = () => {
      let at = 0;
      controls.forEach((control, n) => {
        const input = find("[type='range'], :checked", control), text = plan.texts[n][input.value];
        at = at * plan.texts[n].length + Number(input.value);
        if (input.type === "range") { find("output", control).value = text; input.setAttribute("aria-valuetext", text); }
      });
      const wanted = states[at].map((number) => (drawn[number] ??= layer(number)));
      for (const old of [...paint.children]) if (!wanted.includes(old)) old.remove();
      wanted.forEach((part, n) => { if (paint.children[n] !== part) paint.insertBefore(part, paint.children[n] ?? null); });
      svg.setAttribute("aria-label", plan.alts[at]);
      find(".pl-said", panel).textContent = plan.said[at];
    };
    panel.addEventListener("input", show);
    panel.addEventListener("keydown", (event) => event.stopPropagation()); // or JupyterLab takes the arrow keys
    show();
    find(".pl-still").remove();
    const table = find("details");
    if (table) table.open = false;
  }
})();
