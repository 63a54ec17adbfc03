// Small helpers for the page's elements, and what is said to the reader of the page.

export const $ = (id) => document.getElementById(id);

const ICONS = new URL("./icons.svg", import.meta.url).pathname;
const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `${ICONS}#${name}`);
  svg.append(use);
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

let toastTimer = 0;

// Tell a screen reader; with isShown also everyone else.
export function say(words, isShown = false) {
  $("said").textContent = words;
  if (!isShown) return;
  const toast = $("toast");
  const open = document.querySelector("dialog[open]");
  (open ?? document.body).append(toast);
  toast.textContent = words;
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, 6000);
}

// One of several buttons in a group can be reached with Tab; the arrow keys go to the others.
export function rove(group, choose) {
  group.addEventListener("keydown", (event) => {
    const steps = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1};
    const buttons = [...group.querySelectorAll("button:not([hidden])")];
    const at = buttons.indexOf(document.activeElement);
    let next = null;
    if (event.key in steps) next = buttons[(at + steps[event.key] + buttons.length) % buttons.length];
    if (event.key === "Home") next = buttons[0];
    if (event.key === "End") next = buttons.at(-1);
    if (!next || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    next.focus();
    choose?.(next);
  });
}

export function setTabStops(group, current) {
  for (const button of group.querySelectorAll("button")) button.tabIndex = button === current ? 0 : -1;
}

// The browser's own storage may be forbidden, or full.
export function remember(name, value) {
  try { localStorage.setItem(`spade.${name}`, value); } catch { /* it is a comfort, no more */ }
}

export function remembered(name) {
  try { return localStorage.getItem(`spade.${name}`); } catch { return null; }
}

export function download(blob, name) {
  const link = make("a", {href: URL.createObjectURL(blob), download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
