// What pages do beyond being read: the theme, live parts, a click in the timeline. Each page works without it.
"use strict";
(() => {
  const root = document.documentElement;
  const themes = ["auto", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("pgark-theme") || "auto"; } catch { return "auto"; } };
  const apply = (theme) => theme === "auto" ? root.removeAttribute("data-theme") : root.setAttribute("data-theme", theme);
  apply(stored());

  const each = (selector, act) => document.querySelectorAll(selector).forEach(act);
  const announce = (text) => each("[data-announce]", (place) => { place.textContent = text; });

  const theme = () => each("[data-theme-button]", (button) => {
    let now = stored();
    const show = () => { button.textContent = "Theme: " + now; };
    button.hidden = false;
    show();
    button.addEventListener("click", () => {
      now = themes[(themes.indexOf(now) + 1) % themes.length];
      try { localStorage.setItem("pgark-theme", now); } catch { /* it lasts as long as the page */ }
      apply(now);
      show();
    });
  });

  // A moment in the picture becomes the moment of the form; the form shows the plan.
  const timeline = () => {
    const picture = document.querySelector("[data-timeline]");
    const field = document.querySelector("[data-moment]");
    if (!picture || !field) return;
    const number = (name) => Number(picture.dataset[name]);
    const cursor = picture.querySelector("[data-cursor]");
    const place = (ms) => {
      const part = (ms - number("from")) / (number("to") - number("from"));
      if (!(part >= 0 && part <= 1)) { cursor.setAttribute("visibility", "hidden"); return; }
      const x = number("left") + part * (number("right") - number("left"));
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
    };
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      const x = (event.clientX - box.left) * picture.viewBox.baseVal.width / box.width;
      const part = Math.min(1, Math.max(0, (x - number("left")) / (number("right") - number("left"))));
      const ms = Math.floor((number("from") + part * (number("to") - number("from"))) / 1000) * 1000;
      field.value = new Date(ms).toISOString().slice(0, 19);
      place(ms);
      announce("Moment " + field.value.replace("T", " ") + " UTC");
    });
    const typed = () => { if (field.value) place(Date.parse(field.value + "Z")); };
    field.addEventListener("input", typed);
    typed();
  };

  const copying = () => each("[data-copy]", (button) => {
    const text = document.querySelector("[data-copied]");
    if (!text || !navigator.clipboard) return;
    button.hidden = false;
    button.addEventListener("click", () => navigator.clipboard.writeText(text.textContent).then(() => {
      button.textContent = "Copied";
      announce("Copied");
    }, () => { button.textContent = "Not copied"; }));
  });

  // Parts of the page that change are fetched again, and exchanged; what somebody works in stays.
  let fetching = false, wanted = false, timer = 0;
  const exchange = async () => {
    if (fetching) { wanted = true; return; }
    fetching = true;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", headers: { "X-Requested-With": "pgark" } });
      if (answer.redirected && new URL(answer.url).pathname === "/sign-in") { location.assign(answer.url); return; }
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      each("[data-live-part]", (part) => {
        const next = fresh.getElementById(part.id);
        if (!next || part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")) return;
        const open = [...part.querySelectorAll("details")].map((d) => d.open);
        if (part.innerHTML === next.innerHTML) return;
        const active = document.activeElement && part.contains(document.activeElement) && document.activeElement.getAttribute("href");
        part.replaceChildren(...next.childNodes);
        for (const name of ["data-job-open"]) next.hasAttribute(name) ? part.setAttribute(name, "") : part.removeAttribute(name);
        [...part.querySelectorAll("details")].forEach((d, n) => { if (n < open.length) d.open = open[n]; });
        if (active) part.querySelector(`a[href="${CSS.escape(active)}"]`)?.focus();
      });
    } catch { /* the next event tries again */ } finally {
      fetching = false;
      if (wanted) { wanted = false; soon(); }
    }
  };
  const soon = (ms = 300) => { clearTimeout(timer); timer = setTimeout(exchange, ms); };

  const live = () => {
    if (!document.body.hasAttribute("data-live") || !window.EventSource) return;
    const state = document.querySelector("[data-live-state]");
    const show = (words, away) => { state.hidden = false; state.textContent = words; state.classList.toggle("away", away); };
    const source = new EventSource("/api/v1/events");
    const states = new Map();
    let begun = false;
    source.addEventListener("hello", () => { show("live", false); if (begun) soon(); begun = true; });
    source.addEventListener("reset", () => { begun = true; show("live", false); soon(); });
    source.addEventListener("known", () => soon(1500));
    source.addEventListener("job", (event) => {
      const job = JSON.parse(event.data);
      each("[data-job-progress]", (place) => {
        if (place.dataset.jobProgress === job.id && job.progress) place.textContent = job.progress;
      });
      if (states.get(job.id) !== job.state) {
        states.set(job.id, job.state);
        announce(job.job.replaceAll("_", " ") + " of " + job.cluster + ": " + job.state.replaceAll("_", " "));
        soon();
      } else if (document.querySelector("[data-job-open]")?.dataset.job === job.id) {
        soon(1000);
      }
    });
    source.addEventListener("error", () => show("not live", true));
    addEventListener("pagehide", () => source.close());
  };

  addEventListener("DOMContentLoaded", () => {
    theme();
    timeline();
    copying();
    live();
    if (document.querySelector("[data-reload]")) setTimeout(() => location.reload(), 1500);
  });
})();
