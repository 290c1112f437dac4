// The network, computed by ONNX Runtime Web in WebAssembly, in one thread: several would need
// headers that a plain server does not send. It runs in the page's own thread, since a worker would
// not be bound by the page's Content-Security-Policy.

import { InferenceSession, Tensor, env } from './onnxruntime/ort.js';

const KEPT = 'flaxcls'; // The service worker's cache; large files are put there as they arrive.

env.wasm.numThreads = 1;

/**
 * Loads the runtime and the model.
 * @param about what about.json says.
 * @param report is called with the loaded share.
 * @returns classify(images, count): images Uint8Array [count, side, side, 3], promises
 *   {probabilities: Float32Array [count, classes], maps: as in heat.js, of the first image, or null}.
 */
export async function loadModel(about, report) {
  const files = [about.runtime_file, about.model_file];
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  let arrived = 0;
  const count = (bytes) => report((arrived += bytes) / total);
  const [runtime, model] = await Promise.all(files.map(({ address }) => load(address, count)));
  env.wasm.wasmBinary = runtime;
  const session = await InferenceSession.create(model, { executionProviders: ['wasm'] });
  let last = Promise.resolve(); // One after another: a session does not run twice at once.
  return (images, count) => {
    const next = () => run(session, about, images, count);
    last = last.then(next, next);
    return last;
  };
}

async function run(session, { side, class_names: names }, images, count) {
  await new Promise((resolve) => setTimeout(resolve)); // Lets the browser draw in between.
  const outputs = await session.run({
    images: new Tensor('uint8', images, [count, side, side, 3]),
  });
  const { dims, data: probabilities } = outputs.probabilities;
  if (dims[1] !== names.length) {
    throw new Error(
      translate('the model knows {count} classes, and about.json names {named}', {
        count: dims[1],
        named: names.length,
      }),
    );
  }
  return { probabilities, maps: outputs.maps ? firstMaps(outputs.maps) : null };
}

function firstMaps({ dims: [, height, width, classes], data }) {
  return { height, width, classes, values: data.subarray(0, height * width * classes) };
}

/** Returns the bytes of a file, from the cache if it has been loaded before. */
async function load(address, count) {
  const cache = await openCache();
  const kept = await cache?.match(address);
  const response = kept ?? (await fetch(address));
  if (!response.ok) throw new Error(`${address}: ${response.status} ${response.statusText}`);
  const bytes = await readAll(response, count);
  if (cache && !kept) await keep(cache, address, bytes);
  return bytes;
}

async function readAll(response, count) {
  const chunks = [];
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    count(part.value.length);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

/** Returns null where the browser keeps nothing: on plain http other than localhost, for one. */
async function openCache() {
  try {
    return await globalThis.caches.open(KEPT);
  } catch {
    return null;
  }
}

async function keep(cache, address, bytes) {
  try {
    // Earlier versions of the file, which differ by what follows the question mark.
    await cache.delete(address, { ignoreSearch: true });
    await cache.put(address, new Response(bytes));
  } catch {
    // There is no room for it: the page works, and loads the file again the next time.
  }
}

/** Returns whether the page would start without a network. */
export async function isKept(about) {
  const cache = await openCache();
  if (!cache || !navigator.serviceWorker?.controller) return false;
  const addresses = [about.runtime_file.address, about.model_file.address];
  const found = await Promise.all(addresses.map((address) => cache.match(address)));
  return found.every(Boolean);
}
