// What pages do beyond what they do without scripts: they stay up to date, send forms without being loaded anew, and
// upload files. All HTML that is put into them was made, and escaped, by the server.
import { followUploads } from "./uploads.js";

const main = document.getElementById("main");
const place = () => location.pathname + location.search;
let shown = place();

/** Tell screen readers. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** Parse HTML of the server without running anything of it. */
function parsed(html) {
  return new DOMParser().parseFromString(html, "text/html");
}

// -- parts of the page that are kept up to date ------------------------------------------------------

/** Whether somebody is about to use something in an element, so that it must stay as it is. */
function isInUse(element) {
  const active = document.activeElement;
  return element.contains(active) && active.matches("input, select, textarea");
}

function replaceRegion({ name, digest, html }) {
  const region = document.getElementById(`region-${name}`);
  if (!region || region.dataset.digest === digest || isInUse(region)) return;
  const focused = region.contains(document.activeElement) ? pathOf(document.activeElement, region) : null;
  const open = new Set([...region.querySelectorAll("details[open][id]")].map((one) => one.id));
  const chosen = new Set([...region.querySelectorAll("input:checked[id]")].map((one) => one.id));
  const scrolled = [...region.querySelectorAll(".wide, pre")].map((one) => [one.scrollLeft, one.scrollTop, isAtEnd(one)]);
  region.replaceChildren(...parsed(html).body.childNodes);
  region.dataset.digest = digest;
  for (const one of region.querySelectorAll("details[id]")) one.open = open.has(one.id);
  if (chosen.size) for (const one of region.querySelectorAll("input[type=radio][id]")) if (chosen.has(one.id)) one.checked = true;
  [...region.querySelectorAll(".wide, pre")].forEach((one, at) => {
    if (scrolled[at]) [one.scrollLeft, one.scrollTop] = [scrolled[at][0], scrolled[at][2] ? one.scrollHeight : scrolled[at][1]];
  });
  if (focused) focused.reduce((element, at) => element?.children[at], region)?.focus({ preventScroll: true });
}

/** Whether an element with many lines shows the last ones, and is to go on doing so. */
function isAtEnd(element) {
  return element.scrollHeight > element.clientHeight && element.scrollTop + element.clientHeight >= element.scrollHeight - 4;
}

/** Where an element is below another one. */
function pathOf(element, top) {
  const path = [];
  for (let one = element; one !== top; one = one.parentElement) path.unshift([...one.parentElement.children].indexOf(one));
  return path;
}

let source = null;

function follow() {
  source?.close();
  source = null;
  if (!("live" in document.body.dataset) || document.hidden) return;
  source = new EventSource(location.href);
  source.addEventListener("region", (event) => replaceRegion(JSON.parse(event.data)));
  source.addEventListener("trouble", (event) => showTrouble(JSON.parse(event.data).text));
  source.addEventListener("ended", () => location.reload()); // to where one signs in
  source.addEventListener("open", () => showTrouble(""));
  source.addEventListener("error", () => showTrouble("What you see may be old: the page cannot be reached."));
}

function showTrouble(text) {
  const trouble = document.getElementById("trouble");
  trouble.textContent = text;
  trouble.hidden = !text;
}

document.addEventListener("visibilitychange", follow);
addEventListener("pagehide", () => source?.close());
addEventListener("pageshow", (event) => event.persisted && follow());

// -- forms ------------------------------------------------------------------------------------------

async function send(form, button) {
  const fields = new URLSearchParams(new FormData(form, button));
  const buttons = form.querySelectorAll("button");
  main.setAttribute("aria-busy", "true");
  buttons.forEach((one) => (one.disabled = true));
  try {
    show(await fetch(form.action, { method: "POST", body: fields, headers: { accept: "text/html" } }));
  } catch {
    showTrouble("The page cannot be reached; what you wanted was not done, or it is not known whether it was.");
  } finally {
    main.removeAttribute("aria-busy");
    buttons.forEach((one) => (one.disabled = false));
  }
}

/** Show another page in the place of this one. */
async function show(response) {
  const page = parsed(await response.text());
  const content = page.getElementById("main");
  if (!content || !page.getElementById("said")) {
    location.assign(response.url); // it is no page for who is signed in
    return;
  }
  if (response.redirected && response.url !== location.href) history.pushState(null, "", response.url);
  shown = place();
  document.title = page.title;
  document.body.dataset.csrf = page.body.dataset.csrf;
  if ("live" in page.body.dataset) document.body.dataset.live = "";
  else delete document.body.dataset.live;
  document.querySelector(".top").replaceWith(page.querySelector(".top"));
  const kept = [...main.querySelectorAll("[data-keep]")].map((one) => [one.id, one.value]);
  main.replaceChildren(...content.childNodes);
  for (const [id, value] of kept) {
    const one = document.getElementById(id);
    if (one) one.value = value;
  }
  prepare();
  follow();
  const notice = main.querySelector(".notice");
  say((notice?.querySelector("p") ?? notice)?.textContent.trim() ?? document.title);
  (notice ?? main).scrollIntoView({ block: "nearest" });
  main.focus({ preventScroll: true });
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || "whole" in form.dataset) return;
  event.preventDefault();
  send(form, event.submitter);
});
addEventListener("popstate", () => {
  if (place() !== shown) location.reload(); // otherwise, it was a link to a part of the page
});

// -- what a page has in it ---------------------------------------------------------------------------

function prepare() {
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      say("Copied");
    });
  }
  followUploads();
}

prepare();
follow();
