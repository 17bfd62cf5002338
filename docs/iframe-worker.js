// A page that is opened as a file may not start the worker that searches. Until it may, its script runs in a hidden frame
// that talks like a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.ready = new Promise(resolve => { this.loaded = resolve })
      document.body.appendChild(this.frame)
      const inside = this.frame.contentWindow
      inside.document.open()
      inside.document.write("<!doctype html><html><body></body></html>")
      inside.document.close()
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => urls.reduce(
        (before, one) => before.then(() => this.run(one)), Promise.resolve())
      this.run(url).then(this.loaded)
    }
    run(url) {
      const inside = this.frame.contentDocument
      return new Promise((done, failed) => {
        const script = inside.createElement("script")
        Object.assign(script, { src: url, onload: done, onerror: failed })
        inside.body.appendChild(script)
      })
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() { this.frame.remove() }
  }
}
