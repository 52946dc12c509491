// Every page of the site: light or dark, what the page holds, and a search that needs no server.
(() => {
  const find = (what) => document.querySelector(`header.course ${what}`);
  const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);

  // The system's theme, until the reader asks for the other one.
  const system = matchMedia("(prefers-color-scheme: dark)"), button = find("button");
  let chosen = null;
  try { chosen = localStorage.getItem("prunelab-theme"); } catch { /* a page may not be allowed to remember */ }
  const dark = () => (chosen ?? (system.matches ? "dark" : "light")) === "dark";
  const paint = () => {
    document.body.dataset.jpThemeLight = String(!dark());
    button.setAttribute("aria-pressed", dark());
  };
  button.addEventListener("click", () => {
    chosen = dark() ? "light" : "dark";
    try { localStorage.setItem("prunelab-theme", chosen); } catch { /* then for this page alone */ }
    paint();
  });
  system.addEventListener("change", paint);
  paint();

  // The contents: open beside the page, folded above it; under this page's line its sections.
  const wide = matchMedia("(min-width: 70rem)"), unfold = () => { find("details").open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
  document.addEventListener("DOMContentLoaded", () => {
    const sections = [...document.querySelectorAll("main h2[id]")].map((heading) => {
      const line = make("li", "");
      line.append(make("a", heading.textContent.replace("¶", ""), { href: `#${heading.id}` }));
      return line;
    });
    const list = make("ul", "");
    list.append(...sections);
    if (sections.length) find("[aria-current]").after(list);
    find("nav").scrollTop = find("[aria-current]").offsetTop - 60;
  });

  // The search: every word must occur; a heading counts most, then the page's title.
  const input = find("input"), results = find("ol");
  const rank = ([title, heading, , text], words) => words.reduce((sum, word) => {
    const where = [heading, title, text].findIndex((part) => part.toLowerCase().includes(word));
    return where < 0 ? 0 : sum * [9, 3, 1][where];
  }, 1);
  const line = ([title, heading, to, text], word) => {
    const made = make("li", ""), at = Math.max(0, text.toLowerCase().indexOf(word) - 40);
    made.append(make("a", heading, { href: to }), make("small", heading === title ? "" : ` ${title}`));
    made.append(make("p", (at ? "…" : "") + text.slice(at, at + 140)));
    return made;
  };
  const search = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean), pages = window.prunelabPages;
    if (!pages) return;
    const ranked = words.length ? pages.map((part) => [rank(part, words), part]).filter(([points]) => points) : [];
    ranked.sort((a, b) => b[0] - a[0]);
    results.replaceChildren(...ranked.slice(0, 12).map(([, part]) => line(part, words[0])));
    find("output").value = words.length ? `${ranked.length || "nothing"} found` : "";
  };
  input.addEventListener("focus", () => { // a script, for a page opened from a file may fetch nothing else
    document.head.append(make("script", "", { src: "search.js", onload: search }));
  }, { once: true });
  input.addEventListener("input", search);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.closest("input, textarea")) { input.focus(); event.preventDefault(); }
    if (event.key === "Escape" && event.target === input) { input.value = ""; search(); }
  });
})();
