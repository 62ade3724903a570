// Service worker: caches the page for offline use, and adds the two headers that browsers require for
// threads and that simple servers do not send.

const VERSION = "save-deploy {{version}}", PAGE = {{urls}};
const LASTING = /\/(bundle\/.*\?|ort\/|page-)/; // names contain a hash or version, so they never change

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(PAGE.map((url) => new Request(url, { cache: "reload" })))));
});

self.addEventListener("activate", (event) => event.waitUntil(takeOver()));

async function takeOver() {
  for (const name of await caches.keys())
    if (name.startsWith("save-deploy ") && name !== VERSION) await caches.delete(name);
  await self.clients.claim();
}

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && request.url.startsWith(self.registration.scope)) event.respondWith(answer(request));
});

async function answer(request) {
  const cache = await caches.open(VERSION);
  const kept = () => cache.match(request, { ignoreVary: true });
  if (LASTING.test(request.url)) return isolated((await kept()) ?? (await loaded(cache, request, "default")));
  try {
    return isolated(await loaded(cache, request, "no-cache"));
  } catch (error) {
    const found = await kept();
    if (!found) throw error;
    return isolated(found);
  }
}

async function loaded(cache, request, mode) {
  const found = request.mode === "navigate" ? await fetch(request.url, { cache: mode }) : await fetch(request, { cache: mode });
  if (found.status === 200) await cache.put(request, found.clone()).catch(() => {}); // the disk may be full
  return found;
}

function isolated(found) {
  const headers = new Headers(found.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
