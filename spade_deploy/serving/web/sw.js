// The service worker of a page without a server. FACTS is written in front of this: version (a digest of all files), files
// (which never change under their address), first (what is kept at once; the rest is kept when it is loaded), policy.

const SCOPE = new URL("./", location.href);
const PREFIX = `spade-web ${SCOPE.pathname} `;
const CACHE = PREFIX + FACTS.version;
const KEPT = new Set(FACTS.files.map((name) => new URL(name, SCOPE).href));

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method === "GET" && url.href.startsWith(SCOPE.href)) event.respondWith(answer(event));
});

async function olderCaches() {
  return (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE);
}

async function install() {
  const cache = await caches.open(CACHE);
  for (const name of await olderCaches()) {  // files that are the same as before are not loaded again
    const older = await caches.open(name);
    for (const request of await older.keys()) {
      if (KEPT.has(request.url)) await cache.put(request.url, await older.match(request));
    }
  }
  for (const name of FACTS.first) {
    const url = new URL(name, SCOPE).href;
    if (await cache.match(url)) continue;
    const found = await fetch(url, {cache: "no-cache"});
    if (!found.ok) throw new Error(`${url}: status ${found.status}`);
    await cache.put(url, found);
  }
  await self.skipWaiting();
}

async function activate() {
  for (const name of await olderCaches()) await caches.delete(name);
  await self.clients.claim();
}

async function answer(event) {
  const {request} = event;
  const url = new URL(request.url);
  url.hash = url.search = "";
  const isIndex = url.href === SCOPE.href || url.href === new URL("index.html", SCOPE).href;
  const key = isIndex ? SCOPE.href : url.href;
  const cache = await caches.open(CACHE);
  const kept = isIndex || KEPT.has(key) ? await cache.match(key) : undefined;
  if (kept && !isIndex) return withHeaders(kept);
  try {
    const found = await fetch(request);
    if (found.status === 200 && (isIndex || KEPT.has(key))) {
      event.waitUntil(cache.put(key, found.clone()).catch(() => {}));  // the browser may have no room for it
    }
    return withHeaders(found);
  } catch {
    return kept ? withHeaders(kept) : Response.error();
  }
}

// With these the page is isolated from others, so that it may use several threads; the policy holds for workers, too.
function withHeaders(response) {
  if (response.type === "opaqueredirect" || response.status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  headers.set("Content-Security-Policy", FACTS.policy);
  return new Response(response.body, {status: response.status, statusText: response.statusText, headers});
}
