// The page's side of the worker: promises, and the newest request wins.

export class Model {
  /** `onbusy(whether)` hears when the worker has something to do, and when it has answered everything. */
  constructor(worker, onbusy) {
    this.worker = worker;
    this.onbusy = onbusy;
    this.calls = new Map();
    this.next = 1;
    this.latest = new Map();
    worker.onmessage = ({ data }) => {
      const call = this.calls.get(data.id);
      if (!call) return;
      if ("progress" in data) return call.progress?.(data.progress, data.found);
      this.calls.delete(data.id);
      this.onbusy(this.calls.size > 0);
      if ("error" in data) call.reject(new Error(data.error));
      else call.resolve(data.result);
    };
    worker.onerror = (event) => {
      for (const call of this.calls.values()) call.reject(new Error(event.message || "the worker stopped"));
      this.calls.clear();
    };
  }

  ask(message, progress) {
    const id = this.next++;
    const answer = new Promise((resolve, reject) => this.calls.set(id, { resolve, reject, progress }));
    this.worker.postMessage({ ...message, id });
    this.onbusy(true);
    answer.cancel = () => this.worker.postMessage({ kind: "cancel", id });
    return answer;
  }

  load(sources, bytes, progress) {
    return this.ask({ kind: "load", sources, bytes }, progress);
  }

  read(prompt) {
    return this.ask({ kind: "read", prompt });
  }

  sweep(ids, each, target, progress) {
    return this.ask({ kind: "sweep", ids, each, target }, progress);
  }

  /** A run for one place of the page. While one is under way only the newest of the next is kept; the others give null. */
  async run(place, ids, edits, want) {
    const slot = this.latest.get(place) ?? { busy: false, pending: null };
    this.latest.set(place, slot);
    if (slot.busy) {
      slot.pending?.(false);
      const mine = await new Promise((resolve) => {
        slot.pending = resolve;
      });
      if (!mine) return null;
    }
    slot.busy = true;
    try {
      return await this.ask({ kind: "run", ids, edits, want });
    } finally {
      const next = slot.pending; // it takes over at once: the place stays busy
      slot.pending = null;
      if (next) next(true);
      else slot.busy = false;
    }
  }
}
