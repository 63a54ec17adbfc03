// Every text that the page shows. {name} is filled in.

export const TEXTS = {
  title: "Paint a photo",
  brand: "spade",
  skip: "Skip to the drawing",
  model: "Model",
  new: "New drawing",
  undo: "Undo",
  redo: "Redo",
  save: "Save or share",
  style: "Style",
  help: "Keyboard shortcuts",
  theme: "Colours of the page: {theme}",
  themes: {auto: "as the system", light: "light", dark: "dark"},
  close: "Close",
  cancel: "Cancel",

  views: "View",
  view: {split: "Side by side", blend: "Blended", photo: "Photo", drawing: "Drawing"},
  blend: "How much of the photo",
  drawingPane: "Drawing",
  photoPane: "Photo",
  drawingHelp:
    "Label map of {width} by {height} pixels. Arrow keys move the pen, Space makes a dab, Enter begins and ends a "
    + "stroke, question mark lists all keys.",
  photoOf: "The photo that the model makes of the drawing",

  tools: "Tools",
  tool: {
    brush: "Brush", eraser: "Eraser", line: "Line", rectangle: "Rectangle", polygon: "Polygon", fill: "Fill",
    eyedropper: "Eyedropper", move: "Move a region", pan: "Pan",
  },
  toolHint: {
    eraser: "The eraser paints “{ground}”.",
    line: "Shift keeps to 45°.",
    rectangle: "Shift makes a square.",
    polygon: "A click adds a corner; Enter, a double click or the first corner closes it.",
    fill: "Shift changes the whole class.",
    eyedropper: "Takes the class under the pen.",
    move: "Drag a region; “{ground}” fills its place.",
    pan: "Drag to move the view, or hold Space with any tool.",
  },
  size: "Size",
  pixels: "{count} px",
  shape: "Shape of the brush",
  shapes: {round: "Round", square: "Square"},
  brushMore: "Flat or turned",
  flatness: "Flatness",
  angle: "Angle",
  percent: "{count} %",
  degrees: "{count}°",
  pressure: "Pen pressure changes the size",

  palette: "Classes",
  search: "Search classes",
  searchHint: "Search",
  recent: "Recently used",
  allClasses: "All classes",
  noClass: "No class is called “{text}”.",
  picked: "{name} is chosen",

  zoomIn: "Zoom in",
  zoomOut: "Zoom out",
  fit: "Fit to the window",
  zoom: "{percent} %",

  state: {
    loading: "Loading the models…",
    connecting: "Connecting…",
    ready: "Live",
    busy: "Making the photo…",
    gone: "The server is gone",
    full: "The server is busy",
    problem: "No photo",
  },
  latency: "{ms} ms",
  timing: "From pen to photo {total} ms, of which: {stages}.",
  stages: {decode: "decode {ms}", queue: "queue {ms}", patterns: "patterns {ms}", run: "run {ms}", encode: "encode {ms}"},
  empty: "The photo appears here while you draw.",
  noPhotoYet: "There is no photo yet.",
  gone: "The server does not answer.",
  goneHint: "Your drawing is safe on this page. The next try is in {seconds} s.",
  tryNow: "Try now",
  full: "Too many people are drawing at once.",
  fullHint: "Your drawing is sent again by itself.",
  tryAgain: "Try again",
  noModels: "The models cannot be listed.",
  noServer: "The server does not answer. Is “spade serve” running?",

  token: "This server asks for a token",
  tokenHelp: "It is the first line of the file that “spade serve --token-file” names. This tab keeps it until it is closed.",
  tokenField: "Token",
  tokenWrong: "The server does not take this token.",
  enter: "Go on",

  newTitle: "New drawing",
  newHelp: "What is on the page now can be brought back with Undo, as long as the size stays.",
  mapSize: "Size of the map",
  ownSize: "{width} × {height}, as trained",
  otherSize: "{width} × {height}",
  templates: "Blank",
  template: {sky: "Sky and ground", sea: "Sea and land", one: "One class"},
  samples: "Samples of the model",
  sample: "Sample {number}",
  upload: "From a file",
  uploadMap: "Label map (PNG)",
  uploadMapHelp: "Greyscale or palette; its numbers are the ids.",
  uploadColours: "Coloured picture",
  uploadColoursHelp: "Every pixel becomes the class of the nearest colour.",
  drop: "A file may also be dropped onto the drawing.",

  styleTitle: "Style",
  styleHelp: "This model makes one drawing in many styles: another time of day, another weather.",
  styleMean: "The model's mean style",
  styleSeed: "Random style",
  styleSeedField: "Seed",
  styleDice: "Another seed",
  stylePhoto: "Style of a photo",
  stylePhotoChoose: "Choose a photo…",
  stylePhotoNone: "no photo chosen",
  stylePhotoKept: "the photo's style is kept",
  styleDirections: "From there",
  styleDirectionsHelp: "The main directions of the model's styles, the strongest first. A double click sets one to 0.",
  styleDirection: "Direction {number}",
  styleLevel: "All to 0",

  saveTitle: "Save or share",
  savePhoto: "Photo",
  savePhotoHelp: "PNG, without loss",
  saveMap: "Label map",
  saveMapHelp: "PNG of ids, as training and “spade infer” take it",
  saveBoth: "Both side by side",
  saveBothHelp: "PNG, drawing and photo",
  saveLink: "Copy a link",
  saveLinkHelp: "The whole drawing is in the link; nothing is stored on a server",
  saveFilm: "Time-lapse",
  saveFilmHelp: "Video of the drawing as it grew: {frames} photos",
  linkCopied: "The link is copied.",
  linkShow: "Copy this link:",
  filmMaking: "Recording the time-lapse: {percent} %",
  filmNone: "There is nothing to show yet: draw a little first.",
  filmNotHere: "This browser records no video.",
  saved: "{name} is saved.",

  helpTitle: "Keyboard shortcuts",
  helpGroups: {tools: "Tools", edit: "Drawing", view: "View", keyboard: "Drawing with the keyboard"},
  keys: {
    smaller: "Smaller brush", larger: "Larger brush", recent: "One of the recent classes",
    search: "Search classes", cycleView: "Next view", hold: "Pan while held", finish: "Close a polygon",
    cancel: "Give up a stroke", arrows: "Move the pen by a pixel", farArrows: "Move it by eight pixels",
    dab: "A dab, or a corner of a polygon", stroke: "Begin and end a stroke",
    copyLink: "Copy a link", savePhoto: "Save the photo", wheel: "Zoom at the pointer", twoFingers: "Zoom and pan",
  },
  keyNames: {space: "Space", enter: "Enter", escape: "Esc", arrows: "Arrow keys", wheel: "Wheel", twoFingers: "Two fingers"},

  position: "{x}, {y}: {name}",
  strokeBegun: "Stroke begun",
  strokeEnded: "Stroke ended",
  undone: "Undone",
  redone: "Redone",
  nothingToUndo: "There is nothing to undo.",
  nothingToRedo: "There is nothing to redo.",
  photoNew: "The photo is new.",

  badFile: "{name} cannot be read: {reason}",
  badFileNotPng: "it is no PNG. Use “Coloured picture” for other images.",
  badFileColours: "its pixels are colours, not ids. Use “Coloured picture” to take the nearest class.",
  badFileIds: "{count} pixels have the id {id}, and the model knows 0 to {most}.",
  badFileDamaged: "the file is damaged, or no picture.",
  opened: "{name} is opened.",
  resized: "{name} is opened, and resized from {from} to {to}.",
  badLink: "The drawing in the link is damaged.",
  badLinkModel: "The link is for the model “{model}”, which this server does not have.",

  loaded: "Loading the model: {loaded} of {total} MB",
  preparing: "Preparing the model…",
  noModelFile: "The model cannot be loaded: {file}.",
  noModelFileHint: "The file is missing or damaged there (status {status}): the folder has to be copied as a whole.",
  offlineHint: "There is no connection, and this file was not loaded before.",
  workerEnded: "The model stopped, perhaps for lack of memory.",
  runFailed: "The photo cannot be made: {reason}.",
  memoryHint: "Other tabs may hold the memory that it needs.",
  noEncoder: "The style of a photo needs a server.",
};

// What is said instead where the model runs in the browser itself.
const IN_BROWSER = {
  state: {loading: "Loading the model…", connecting: "Loading the model…", gone: "The model stopped"},
  timing: "From pen to photo {total} ms, in this browser: {stages}.",
  gone: "The model stopped.",
  noModels: "The model cannot be loaded.",
  badLinkModel: "The link is for the model “{model}”, which is not the one of this page.",
};
const isInBrowser = globalThis.document?.documentElement.dataset.engine === "browser";

// texts: a path such as "tool.brush"; values fill in what stands in braces.
export function text(path, values = {}) {
  const of = (texts) => path.split(".").reduce((part, name) => part?.[name], texts);
  const found = (isInBrowser ? of(IN_BROWSER) : null) ?? of(TEXTS);
  if (typeof found !== "string") throw new Error(`there is no text ${path}`);
  return found.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

// A problem in whole sentences: what happened, what to do next. {detail, hint} as the server says them.
export function told({detail, hint}) {
  const parts = [detail || text("noServer"), hint].filter(Boolean).map((part) => part[0].toUpperCase() + part.slice(1));
  return parts.map((part) => (/[.!?]$/.test(part) ? part : `${part}.`)).join(" ");
}

// Fill in the elements of the page that name their text: data-text the content, data-label the label and the tip.
export function fillTexts(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) label(element, text(element.dataset.label));
  for (const element of root.querySelectorAll("[data-hint]")) element.placeholder = text(element.dataset.hint);
}

export function label(element, words, key = "") {
  element.setAttribute("aria-label", words);
  element.title = key ? `${words} (${key})` : words;
}
