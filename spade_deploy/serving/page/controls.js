// The buttons and sliders around the drawing: tools, brush, view, undo, zoom, and the colours of the page.

import {COMMAND, TOOL_KEYS} from "./shortcuts.js";
import {label, text} from "./texts.js";
import {TOOLS} from "./tools.js";
import {$, icon, make, remember, remembered, rove, say, setTabStops} from "./ui.js";

const VIEWS = ["split", "blend", "photo", "drawing"];
const THEMES = ["auto", "light", "dark"];
const SHAPES = ["round", "square"];
const WITH_SIZE = ["brush", "eraser", "line"];
const ZOOM_STEP = 1.25;

export class Controls {
  toolName = "brush";
  brush = {size: 12, shape: "round", flatness: 0, angle: 0, usesPressure: true};

  constructor(app) {
    this.app = app;
    this.#makeTools();
    this.#makeShapes();
    this.#makeViews();
    this.#makeTheme();
    $("size").addEventListener("input", () => this.setSize(this.#fromSlider(Number($("size").value)), true));
    for (const name of ["flatness", "angle"]) $(name).addEventListener("input", () => this.#showForm());
    this.#showForm();
    $("pressure").checked = true;
    $("pressure").addEventListener("change", () => { this.brush.usesPressure = $("pressure").checked; });
    label($("undo"), text("undo"), `${COMMAND}+Z`);
    label($("redo"), text("redo"), `${COMMAND}+Shift+Z`);
    label($("new"), text("new"), "N");
    label($("help"), text("help"), "?");
    for (const name of ["undo", "redo"]) $(name).addEventListener("click", () => this.actions[name]());
    $("help").addEventListener("click", () => this.actions.help());
    $("fit").addEventListener("click", () => app.view.fit());
    $("zoom-in").addEventListener("click", () => this.actions.zoomIn());
    $("zoom-out").addEventListener("click", () => this.actions.zoomOut());
    app.view.addEventListener("placed", () => {
      const percent = Math.round(100 * app.view.zoom);
      $("fit").textContent = text("zoom", {percent});
      label($("fit"), `${text("zoom", {percent})}: ${text("fit")}`, "0");
    });
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.addEventListener("click", (event) => {
        if (event.target === dialog && dialog.id !== "token-dialog") dialog.close();
      });
    }
  }

  // What the keys do; see shortcuts.js.
  get actions() {
    const {app} = this;
    return {
      tool: (name) => this.setTool(name),
      smaller: () => this.setSize(this.#nextSize(-1)),
      larger: () => this.setSize(this.#nextSize(1)),
      undo: () => this.#step("undo", "undone", "nothingToUndo"),
      redo: () => this.#step("redo", "redone", "nothingToRedo"),
      recent: (number) => app.palette.pickRecent(number),
      search: () => $("search").focus(),
      new: () => app.begin.open(),
      help: () => $("help-dialog").showModal(),
      cycleView: () => this.setView(VIEWS[(VIEWS.indexOf(app.view.mode) + 1) % VIEWS.length]),
      fit: () => app.view.fit(),
      zoomIn: () => app.view.zoomBy(ZOOM_STEP),
      zoomOut: () => app.view.zoomBy(1 / ZOOM_STEP),
      hold: (isHeld) => this.#hold(isHeld),
      cancel: () => app.input.cancel(),
      finish: () => app.tool.finish(),
      savePhoto: () => app.save.photo(),
      copyLink: () => app.save.link(),
    };
  }

  #step(name, done, nothing) {
    const isDone = this.app.drawing?.[name]();
    say(text(isDone ? done : nothing));
  }

  #hold(isHeld) {
    this.app.input.isSpaceHeld = isHeld;
    $("stage").classList.toggle("can-pan", isHeld || this.toolName === "pan");
  }

  #makeTools() {
    const buttons = Object.keys(TOOLS).map((name) => {
      const button = make("button", {type: "button", className: "icon"}, icon(name));
      label(button, text(`tool.${name}`), TOOL_KEYS[name]);
      button.dataset.tool = name;
      button.addEventListener("click", () => this.setTool(name));
      return button;
    });
    $("tools").replaceChildren(...buttons);
    rove($("tools"));
  }

  setTool(name) {
    this.app.tool.cancel();
    this.toolName = name;
    this.app.view.points = [];
    this.app.view.refresh();
    this.showTool();
    say(text(`tool.${name}`));
  }

  // The chosen tool, and what its options are.
  showTool() {
    for (const button of $("tools").children) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === this.toolName));
    }
    setTabStops($("tools"), $("tools").querySelector("[aria-pressed=true]"));
    const ground = this.app.palette.nameOf(this.app.ground);
    const hasHint = !["brush"].includes(this.toolName);
    $("tool-hint").textContent = hasHint ? text(`toolHint.${this.toolName}`, {ground}) : "";
    $("options").classList.toggle("no-size", !WITH_SIZE.includes(this.toolName));
    $("stage").dataset.tool = this.toolName;
    this.#hold(false);
    this.setSize(this.brush.size);
  }

  #makeShapes() {
    const buttons = SHAPES.map((shape) => {
      const button = make("button", {type: "button", className: `shape ${shape}`}, make("span", {className: "dab"}),
        make("span", {textContent: text(`shapes.${shape}`)}));
      button.setAttribute("role", "radio");
      button.dataset.shape = shape;
      button.addEventListener("click", () => this.setShape(shape));
      return button;
    });
    $("shapes").replaceChildren(...buttons);
    rove($("shapes"), (button) => this.setShape(button.dataset.shape));
    this.setShape("round");
  }

  setShape(shape) {
    this.brush.shape = shape;
    for (const button of $("shapes").children) {
      button.setAttribute("aria-checked", String(button.dataset.shape === shape));
      button.tabIndex = button.dataset.shape === shape ? 0 : -1;
    }
  }

  // How flat the brush is, and how it is turned.
  #showForm() {
    const [percent, degrees] = [Number($("flatness").value), Number($("angle").value)];
    Object.assign(this.brush, {flatness: percent / 100, angle: degrees});
    $("flatness-shown").textContent = text("percent", {count: percent});
    $("angle-shown").textContent = text("degrees", {count: degrees});
    $("shapes").style.setProperty("--flat", String(1 - percent / 100));
    $("shapes").style.setProperty("--turn", `${-degrees}deg`);
    this.setSize(this.brush.size);
  }

  // The slider is not even: small brushes need finer steps.
  get #most() { return this.app.drawing ? Math.max(this.app.drawing.width, this.app.drawing.height) : 128; }
  #fromSlider(value) { return Math.max(1, Math.round(this.#most ** (value / 100))); }
  #toSlider(size) { return Math.round((100 * Math.log(size)) / Math.log(this.#most)); }
  #nextSize(step) { return this.brush.size + step * Math.max(1, Math.round(this.brush.size / 8)); }

  setSize(size, isBySlider = false) {
    this.brush.size = Math.min(this.#most, Math.max(1, size));
    if (!isBySlider) $("size").value = String(this.#toSlider(this.brush.size));
    $("size-shown").textContent = text("pixels", {count: this.brush.size});
    $("size").setAttribute("aria-valuetext", text("pixels", {count: this.brush.size}));
    const {view} = this.app;
    if (view.cursor && WITH_SIZE.includes(this.toolName)) view.cursor.brush = {...this.brush};
    view.refresh();
  }

  #makeViews() {
    for (const button of $("views").querySelectorAll("button")) {
      label(button, text(`view.${button.dataset.view}`));
      button.addEventListener("click", () => this.setView(button.dataset.view));
    }
    $("blend").addEventListener("input", () => this.app.view.setBlend(Number($("blend").value) / 100));
    const kept = remembered("view");
    this.setView(VIEWS.includes(kept) ? kept : "split");
  }

  setView(view) {
    for (const button of $("views").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === view));
    }
    $("blend").hidden = view !== "blend";
    this.app.view.mode = view;
    remember("view", view);
  }

  #makeTheme() {
    const kept = remembered("theme");
    this.#setTheme(THEMES.includes(kept) ? kept : "auto");
    $("theme").addEventListener("click", () => {
      const now = document.documentElement.dataset.theme;
      this.#setTheme(THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
    });
  }

  #setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    label($("theme"), text("theme", {theme: text(`themes.${theme}`)}));
    remember("theme", theme);
  }

  showHistory() {
    $("undo").setAttribute("aria-disabled", String(!this.app.drawing.canUndo));
    $("redo").setAttribute("aria-disabled", String(!this.app.drawing.canRedo));
  }
}
