// The service worker of a page without a server: it keeps the files for work offline, and adds the headers (COOP, COEP)
// that browsers want before WebAssembly may use several threads. A page gets headers when it is loaded, so the first
// visit loads itself once more. Where there is no service worker the page works with one thread, and online.

const WAIT_MS = 5000;
const ONCE = "spade.loaded-again";

export async function keepOffline() {
  if (!("serviceWorker" in navigator)) return;
  const workers = navigator.serviceWorker;
  try {
    await workers.register(new URL("./sw.js", document.baseURI));
    if (globalThis.crossOriginIsolated || sessionStorage.getItem(ONCE)) return;
    const controlled = workers.controller ? Promise.resolve(true) : new Promise((resolve) => {
      workers.addEventListener("controllerchange", () => resolve(true), {once: true});
    });
    const isControlled = await Promise.race([controlled, new Promise((resolve) => setTimeout(resolve, WAIT_MS, false))]);
    if (!isControlled) return;
    sessionStorage.setItem(ONCE, "yes");
    location.reload();
    await new Promise(() => {});  // nothing more is done in this page
  } catch { /* a private window may refuse it */ }
}
