// The service worker: the page's small files come from the server where there is one, so that a
// new version is seen at once, and otherwise from the cache. The two large ones carry their version
// in the address, and model.js keeps them.

const KEPT = 'flaxcls';
const FILES = [
  './',
  'style.css',
  'translate.js',
  'app.js',
  'model.js',
  'preprocess.js',
  'heat.js',
  'onnxruntime/ort.js',
  'about.json',
  'manifest.json',
  'icon.png',
];
const PATIENCE = 5000; // Milliseconds; then a bad network counts as none.

self.addEventListener('install', (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(KEPT).then((cache) => cache.addAll(FILES)));
});

self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));

const ADDRESSES = new Set(FILES.map((file) => new URL(file, self.location).href));

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const name = request.url.replace(/(index\.html)?([?#].*)?$/, '');
  if (request.method === 'GET' && ADDRESSES.has(name)) event.respondWith(respond(request, name));
});

async function respond(request, name) {
  const cache = await caches.open(KEPT);
  try {
    const response = await fetch(request, {
      cache: 'no-cache',
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (response.ok) await cache.put(name, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(name);
    if (kept) return kept;
    throw error;
  }
}
