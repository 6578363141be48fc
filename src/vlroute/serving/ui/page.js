// The language of the page, Gradio's own labels in it, the copy buttons, and names for what Gradio leaves without one.
(() => {
  const root = document.documentElement;
  const chinesePath = /\/zh\/?$/;
  const remember = (language) => { try { localStorage.setItem("vlroute-language", language); } catch (_) {} };
  const remembered = () => { try { return localStorage.getItem("vlroute-language"); } catch (_) { return null; } };

  // The first language: of the address, as chosen before, or of the browser. Only then is another page loaded.
  const asked = new URLSearchParams(location.search).get("lang");
  if (asked) remember(asked);
  const chinese = chinesePath.test(location.pathname);
  let language = chinese ? "zh" : "en";  // Gradio sets the `lang` of the page to that of the browser
  root.lang = language;
  if (!chinese && (remembered() || asked || navigator.language).startsWith("zh")) {
    location.replace(location.pathname.replace(/\/?$/, "/zh") + location.search);
    return;
  }

  // Later changes keep the page; the address follows, so that a reload shows the same language.
  function follow() {
    if (root.lang !== language) root.lang = language;
    const shown = document.querySelector("#head [data-language]");
    if (!shown || shown.dataset.language === language) return;
    root.lang = language = shown.dataset.language;
    remember(language);
    const path = location.pathname.replace(chinesePath, "/");
    history.replaceState(history.state, "", language === "zh" ? path.replace(/\/?$/, "/zh") : path);
    label(document.body);
  }

  // Gradio has labels in English only, or in the language of the browser instead of that of the page.
  const tables = {};
  for (const one in VLROUTE_LABELS) {
    tables[one] = new Map();
    VLROUTE_LABELS[one].forEach((wanted, place) => {
      for (const other in VLROUTE_LABELS) tables[one].set(VLROUTE_LABELS[other][place], wanted);
    });
  }
  const ATTRIBUTES = ["aria-label", "title", "placeholder", "alt"];
  const OWN_TEXT = ".sr-only, .uploading, button.show-all, .creds, h2, label span, button, .empty, .wrap";
  const translated = (text) => tables[language].get(text.trim());
  function label(element) {
    if (!(element instanceof Element)) return;
    for (const one of [element, ...element.querySelectorAll("*")]) {
      for (const name of ATTRIBUTES) {
        const value = one.getAttribute(name);
        const wanted = value && translated(value);
        if (wanted && wanted !== value) one.setAttribute(name, wanted);
      }
      repair(one);
      if (one.closest(".message, .badge") === null) {
        for (const node of one.childNodes) {
          const wanted = node.nodeType === Node.TEXT_NODE && translated(node.data);
          if (wanted && wanted !== node.data) node.data = wanted;
        }
      }
    }
  }

  // What axe-core finds in Gradio's elements.
  function repair(one) {
    const set = (name, value) => { if (one.getAttribute(name) !== value) one.setAttribute(name, value); };
    const named = one.getAttribute("aria-label") || "";
    if (one.matches("[data-testid=user], [data-testid=bot]")) one.removeAttribute("aria-label");  // the whole message
    else if (/^(Select example \d+: |range slider for )/.test(named)) set("aria-label", named.replace(/^.*?(: | for )/, ""));
    if (one.matches(".examples[role=list], .thumbnail-wrapper[role=listitem]")) one.removeAttribute("role");
    if (one.matches("img.example-image")) set("alt", "");  // the button has a text
    if (one.matches(".thought-group .title .icon-button")) {  // its parent is the button
      one.disabled = true;
      set("aria-hidden", "true");
    }
    if (one.matches("button button.upload-container") && !one.disabled) {  // a button in a button
      one.disabled = true;
      one.parentElement.closest("button").addEventListener("click", () => one.querySelector("input").click());
      one.querySelector("input").addEventListener("click", (event) => event.stopPropagation());
    }
    if (one.matches("button") && one.querySelector(".image-frame")) set("aria-label", translated("Enlarge the picture"));
  }

  // Screen readers read an answer once it is complete.
  function busy() {
    for (const log of document.querySelectorAll("[role=log]")) {
      const rows = log.querySelectorAll(".bot-row");
      const last = rows[rows.length - 1];
      log.setAttribute("aria-busy", String(Boolean(last) && !last.querySelector(".badge")));
    }
  }

  new MutationObserver((changes) => {
    follow();
    for (const change of changes) {
      if (change.type === "childList") change.addedNodes.forEach((node) => label(node));
      else label(change.type === "attributes" ? change.target : change.target.parentElement);
    }
    busy();
  }).observe(root, {
    subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["lang", ...ATTRIBUTES],
  });

  async function copy(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");  // pages without TLS have no clipboard
    area.value = text;
    area.style.position = "fixed";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  document.addEventListener("click", async (event) => {
    const button = event.target instanceof Element && event.target.closest("button.copy");
    if (!button) return;
    await copy(button.dataset.copy);
    const before = button.title;
    button.classList.add("copied");
    button.title = button.dataset.copied;
    button.setAttribute("aria-label", button.dataset.copied);
    setTimeout(() => {
      button.classList.remove("copied");
      button.title = before;
      button.setAttribute("aria-label", before);
    }, 2000);
  });
})();
