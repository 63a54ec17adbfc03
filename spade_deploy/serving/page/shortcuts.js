// The keys of the page, and the sheet that lists them.

import {text} from "./texts.js";
import {$, make} from "./ui.js";

export const TOOL_KEYS = {
  brush: "B", eraser: "E", line: "L", rectangle: "R", polygon: "P", fill: "G", eyedropper: "I", move: "V", pan: "H",
};

const isMac = /Mac|iP(hone|ad)/.test(navigator.platform);
export const COMMAND = isMac ? "⌘" : "Ctrl";

// actions: name -> function; see main.js.
export function listen(actions) {
  const plain = {
    "[": actions.smaller, "]": actions.larger, "?": actions.help, "/": actions.search, n: actions.new, w: actions.cycleView,
    0: actions.fit, "+": actions.zoomIn, "=": actions.zoomIn, "-": actions.zoomOut, Escape: actions.cancel,
    Enter: actions.finish,
  };
  for (const [name, key] of Object.entries(TOOL_KEYS)) plain[key.toLowerCase()] = () => actions.tool(name);
  for (let k = 1; k <= 9; k++) plain[k] = () => actions.recent(k);
  const withCommand = {z: actions.undo, y: actions.redo, "shift z": actions.redo, s: actions.savePhoto, "shift c": actions.copyLink};
  addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input:not([type=range], [type=checkbox], [type=radio]), select, dialog");
    if (isTyping || event.isComposing) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    let action = null;
    if (event.ctrlKey || event.metaKey) action = withCommand[event.shiftKey ? `shift ${key}` : key];
    else if (event.altKey) return;
    else if (key === " " && !event.target.closest("button, input")) action = () => actions.hold(true);
    else if (!(key === "Enter" && event.target.closest("button, a"))) action = plain[key];
    if (!action) return;
    if (action !== actions.cancel) event.preventDefault();
    action();
  });
  addEventListener("keyup", (event) => { if (event.key === " ") actions.hold(false); });
  addEventListener("blur", () => actions.hold(false));
}

export function fillHelp() {
  const names = (name) => text(`keyNames.${name}`);
  const groups = {
    tools: Object.entries(TOOL_KEYS).map(([name, key]) => [[key], text(`tool.${name}`)]),
    edit: [
      [[COMMAND, "Z"], text("undo")], [[COMMAND, "Shift", "Z"], text("redo")], [["["], text("keys.smaller")],
      [["]"], text("keys.larger")], [["1 … 9"], text("keys.recent")], [["/"], text("keys.search")], [["N"], text("new")],
      [[COMMAND, "S"], text("keys.savePhoto")], [[COMMAND, "Shift", "C"], text("keys.copyLink")],
    ],
    view: [
      [["W"], text("keys.cycleView")], [["+"], text("zoomIn")], [["−"], text("zoomOut")], [["0"], text("fit")],
      [[names("space")], text("keys.hold")], [[names("wheel")], text("keys.wheel")],
      [[names("twoFingers")], text("keys.twoFingers")], [["?"], text("help")],
    ],
    keyboard: [
      [[names("arrows")], text("keys.arrows")], [["Shift", names("arrows")], text("keys.farArrows")],
      [[names("space")], text("keys.dab")], [[names("enter")], text("keys.stroke")],
      [[names("enter")], text("keys.finish")], [[names("escape")], text("keys.cancel")],
    ],
  };
  $("keys").replaceChildren(...Object.entries(groups).map(([name, rows]) => {
    const list = make("dl");
    for (const [keys, words] of rows) {
      const shown = make("dt", {}, ...keys.map((key) => make("kbd", {textContent: key})));
      list.append(make("div", {}, shown, make("dd", {textContent: words})));
    }
    return make("section", {}, make("h3", {textContent: text(`helpGroups.${name}`)}), list);
  }));
}
