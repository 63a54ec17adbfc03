// What the pen does with each tool. A tool has down, move and up, with a point {x, y, brush, isShifted} in pixels of the
// map; `ask` gives what is chosen now: {drawing, classId, eraserId, pick}.

import {boxOf, fill, line, polygon, rectangle, region} from "./raster.js";

class Tool {
  constructor(ask) { this.ask = ask; }
  get paintsWith() { return this.ask().classId; }
  down() {}
  move() {}
  up() {}
  cancel() { this.ask().drawing?.cancel(); }
  finish() { return false; }  // Enter and a double click; true if it meant something
  get points() { return []; }  // what is shown above the map until it is finished
}

// A tool that paints from where the pen is put down to where it is lifted.
class Stroke extends Tool {
  from = null;  // the point that the next move starts from; null while the pen is up

  down(point) {
    this.from = point;
    this.ask().drawing.begin();
    this.move(point);
  }

  up() {
    this.from = null;
    this.ask().drawing.commit();
  }

  cancel() {
    this.from = null;
    super.cancel();
  }
}

class Brush extends Stroke {
  move(point) {
    if (!this.from) return;
    this.ask().drawing.paint((map) => line(map, this.from, point, point.brush, this.paintsWith));
    this.from = point;
  }
}

class Eraser extends Brush {
  get paintsWith() { return this.ask().eraserId; }
}

class Dragged extends Stroke {
  move(point) {
    if (!this.from) return;
    const {drawing, classId} = this.ask();
    drawing.restore();
    const end = point.isShifted ? this.straight(this.from, point) : point;
    drawing.paint((map) => this.shape(map, this.from, end, point.brush, classId));
  }
}

class Line extends Dragged {
  shape(map, a, b, brush, id) { return line(map, a, b, brush, id); }

  // To the nearest of eight directions.
  straight(a, b) {
    const [dx, dy] = [b.x - a.x, b.y - a.y];
    const angle = (Math.round(Math.atan2(dy, dx) / (Math.PI / 4)) * Math.PI) / 4;
    const length = Math.max(Math.abs(dx), Math.abs(dy));
    return {x: a.x + Math.round(Math.cos(angle)) * length, y: a.y + Math.round(Math.sin(angle)) * length};
  }
}

class Rectangle extends Dragged {
  shape(map, a, b, brush, id) { return rectangle(map, a, b, id); }

  straight(a, b) {
    const side = Math.max(Math.abs(b.x - a.x), Math.abs(b.y - a.y));
    return {x: a.x + (b.x < a.x ? -side : side), y: a.y + (b.y < a.y ? -side : side)};
  }
}

class Polygon extends Tool {
  #points = [];

  get points() { return this.#points; }

  down(point) {
    const first = this.#points[0];
    const near = Math.max(1, point.reach ?? 1);
    if (this.#points.length >= 3 && Math.hypot(point.x - first.x, point.y - first.y) <= near) this.finish();
    else this.#points.push({x: point.x, y: point.y});
  }

  finish() {
    if (this.#points.length < 3) return false;
    const {drawing, classId} = this.ask();
    const points = this.#points;
    this.#points = [];
    drawing.begin();
    drawing.paint((map) => polygon(map, points, classId));
    drawing.commit();
    return true;
  }

  cancel() { this.#points = []; }
}

class Fill extends Tool {
  down(point) {
    const {drawing, classId} = this.ask();
    if (!drawing.contains(point.x, point.y)) return;
    drawing.begin();
    drawing.paint((map) => fill(map, point.x, point.y, classId, point.isShifted));
    drawing.commit();
  }
}

class Eyedropper extends Tool {
  #isDown = false;

  down(point) {
    this.#isDown = true;
    this.move(point);
  }

  move(point) {
    const {drawing, pick} = this.ask();
    if (this.#isDown && drawing.contains(point.x, point.y)) pick(drawing.idAt(point.x, point.y));
  }

  up() { this.#isDown = false; }
  cancel() { this.#isDown = false; }
}

// Takes the connected region under the pen to another place; what it leaves becomes the eraser's class.
class Move extends Stroke {
  #indices = [];
  #id = 0;

  down(point) {
    const {drawing} = this.ask();
    if (!drawing.contains(point.x, point.y)) return;
    this.#id = drawing.idAt(point.x, point.y);
    this.#indices = region(drawing, point.x, point.y);
    super.down(point);
  }

  move(point) {
    if (!this.from) return;
    const {drawing, eraserId} = this.ask();
    drawing.restore();
    const [dx, dy] = [point.x - this.from.x, point.y - this.from.y];
    if (!dx && !dy) return;
    drawing.paint((map) => {
      for (const index of this.#indices) map.ids[index] = eraserId;
      for (const index of this.#indices) {
        const x = (index % map.width) + dx;
        const y = Math.floor(index / map.width) + dy;
        if (map.contains(x, y)) map.ids[y * map.width + x] = this.#id;
      }
      const box = boxOf(map, this.#indices);
      return {
        x0: Math.max(0, Math.min(box.x0, box.x0 + dx)),
        y0: Math.max(0, Math.min(box.y0, box.y0 + dy)),
        x1: Math.min(map.width, Math.max(box.x1, box.x1 + dx)),
        y1: Math.min(map.height, Math.max(box.y1, box.y1 + dy)),
      };
    });
  }
}

// The order is that of the toolbar; keys are in shortcuts.js, names in texts.js. The view itself knows "pan".
export const TOOLS = {
  brush: Brush, eraser: Eraser, line: Line, rectangle: Rectangle, polygon: Polygon, fill: Fill, eyedropper: Eyedropper,
  move: Move, pan: Tool,
};

export function makeTools(ask) {
  return Object.fromEntries(Object.entries(TOOLS).map(([name, Kind]) => [name, new Kind(ask)]));
}
