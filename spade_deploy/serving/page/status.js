// What the page tells of the server: the line at the bottom, the bar above the photo, and the notice over it.

import {text} from "./texts.js";
import {$} from "./ui.js";

let countdown = 0;

// state: a key of texts.state.
export function showState(state) {
  if ($("state").dataset.state !== state || !$("state-text").textContent) {
    $("state").dataset.state = state;
    $("state-text").textContent = text(`state.${state}`);
  }
  if (state === "problem" || state === "gone") $("empty").textContent = text("noPhotoYet");
  $("progress").hidden = state !== "busy" && state !== "loading";
}

// How much of a model has come, in bytes.
export function showLoaded({loaded, total}) {
  showState("loading");
  const words = text("loaded", {loaded: (loaded / 1e6).toFixed(1), total: (total / 1e6).toFixed(1)});
  $("state-text").textContent = words;
  $("empty").textContent = loaded < total ? words : text("preparing");
}

// Milliseconds from pen to photo, and the stages of the header Server-Timing.
export function showLatency(ms, timing) {
  $("latency").textContent = text("latency", {ms: Math.round(ms)});
  const stages = [...(timing ?? "").matchAll(/(\w+);dur=([\d.]+)/g)]
    .map(([, name, value]) => text(`stages.${name}`, {ms: Number(value).toFixed(1)}));
  $("latency").title = text("timing", {total: Math.round(ms), stages: stages.join(", ")});
}

// words: what to do next; button: its words, with what it does. seconds: {s} in the words is counted down.
export function showNotice(kind, title, words, {button = "", act = null, seconds = 0} = {}) {
  clearInterval(countdown);
  const tell = (left) => { $("notice-text").textContent = sentence(typeof words === "function" ? words(left) : words); };
  tell(seconds);
  if (seconds > 0) {
    let left = seconds;
    countdown = setInterval(() => { left = Math.max(0, left - 1); tell(left); }, 1000);
  }
  $("notice").dataset.kind = kind;
  if ($("notice-title").textContent !== sentence(title)) $("notice-title").textContent = sentence(title);
  $("notice-retry").hidden = !act;
  $("notice-retry").textContent = button;
  $("notice-retry").onclick = act;
  $("notice").hidden = false;
}

// What a problem of the server says, whose fields stand in backticks and whose hints begin small.
function sentence(words) {
  const bare = words.replaceAll("`", "");
  return bare.charAt(0).toUpperCase() + bare.slice(1);
}

export function hideNotice() {
  clearInterval(countdown);
  $("notice").hidden = true;
  $("notice-title").textContent = "";
}
