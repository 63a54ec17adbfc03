// The list of classes: search, recently used, and which one the pen paints.

import {text} from "./texts.js";
import {$, make, rove, say, setTabStops} from "./ui.js";

const MOST_RECENT = 9;

export class Palette extends EventTarget {
  #labels = [];
  #recent = [];
  classId = 0;

  constructor() {
    super();
    rove($("classes"), (button) => this.pick(Number(button.dataset.id)));
    for (const list of [$("classes"), $("recent")]) {
      list.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (button) this.pick(Number(button.dataset.id));
      });
    }
    $("search").addEventListener("input", () => this.#search());
    $("search").addEventListener("keydown", (event) => {
      const first = [...$("classes").children].find((button) => !button.hidden);
      if (event.key === "Enter" && first) this.pick(Number(first.dataset.id));
      if (event.key === "ArrowDown" && first) {
        event.preventDefault();
        first.focus();
      }
      if (event.key === "Escape") {
        $("search").value = "";
        this.#search();
        $("drawing").focus();
      }
    });
  }

  // labels: [{id, name, color}] as the server has them.
  show(labels, classId) {
    this.#labels = labels;
    this.#recent = [];
    $("classes").replaceChildren(...labels.map((one) => this.#button(one, "radio")));
    $("search").value = "";
    this.#search();
    this.pick(classId, true);
  }

  nameOf(id) { return this.#labels[id]?.name ?? String(id); }

  pick(id, isQuiet = false) {
    if (!this.#labels[id]) return;
    this.classId = id;
    for (const button of $("classes").children) {
      button.setAttribute("aria-checked", String(Number(button.dataset.id) === id));
    }
    const current = $("classes").children[id];
    setTabStops($("classes"), current);
    if (!isQuiet) current.scrollIntoView({block: "nearest"});
    if (!this.#recent.includes(id)) this.#recent = [id, ...this.#recent].slice(0, MOST_RECENT);
    this.#showRecent();
    if (!isQuiet) say(text("picked", {name: this.nameOf(id)}));
    this.dispatchEvent(new Event("picked"));
  }

  // number: from 1 on, as the keys are.
  pickRecent(number) {
    if (number <= this.#recent.length) this.pick(this.#recent[number - 1]);
  }

  // The classes of a drawing, so that they are at hand.
  use(ids) {
    for (const id of ids) {
      if (this.#recent.length < MOST_RECENT && !this.#recent.includes(id)) this.#recent.push(id);
    }
    this.#showRecent();
  }

  #showRecent() {
    const buttons = this.#recent.map((id, k) => {
      const button = this.#button(this.#labels[id], "");
      button.setAttribute("aria-pressed", String(id === this.classId));
      button.title = `${this.nameOf(id)} (${k + 1})`;
      button.setAttribute("aria-label", this.nameOf(id));
      return button;
    });
    $("recent").replaceChildren(...buttons);
  }

  #button({id, name, color}, role) {
    const swatch = make("span", {className: "swatch"});
    swatch.style.background = color;
    const button = make("button", {type: "button", className: "class"}, swatch, make("span", {textContent: name}));
    button.dataset.id = id;
    if (role) button.setAttribute("role", role);
    return button;
  }

  #search() {
    const wanted = $("search").value.trim().toLowerCase();
    let found = 0;
    for (const button of $("classes").children) {
      button.hidden = !button.textContent.toLowerCase().includes(wanted);
      found += button.hidden ? 0 : 1;
    }
    $("no-class").hidden = found > 0;
    $("classes").hidden = found === 0;
    $("no-class").textContent = text("noClass", {text: wanted});
    const current = $("classes").children[this.classId];
    const reachable = current && !current.hidden ? current : [...$("classes").children].find((one) => !one.hidden);
    setTabStops($("classes"), reachable);
  }
}
