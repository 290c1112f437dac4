// The page: takes a picture, shows the prediction and where it comes from.

import { drawHeat, occlude } from './heat.js';
import { isKept, loadModel } from './model.js';
import { centerCrop, decode, prepare } from './preprocess.js';

const NUM_PREDICTIONS = 5;
const LONGER_SIDE = 960; // Of the picture as it is shown, pixels.
const percent = new Intl.NumberFormat('en', {
  style: 'percent',
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
});
const element = (id) => document.getElementById(id);

const described = fetchAbout();
const loaded = described.then((about) => loadModel(about, showProgress));
let turn = 0; // Counts pictures; what is still computed for an earlier one is dropped.

async function start() {
  element('not-started').remove();
  takePictures();
  element('strength').addEventListener('input', (event) => {
    element('heat').style.opacity = event.target.value / 100;
  });
  try {
    introduce(await described);
    await loaded;
    showProgress(null);
    if (!turn) say(translate('Ready for a picture.'));
    await tellWhetherKept(await described);
  } catch (error) {
    failToLoad(error);
  }
}

async function fetchAbout() {
  const response = await fetch('about.json');
  if (!response.ok) throw new Error(`about.json: ${response.status} ${response.statusText}`);
  return response.json();
}

function introduce(about) {
  const names = about.class_names;
  const shown = [...names.slice(0, 12), ...(names.length > 12 ? ['…'] : [])];
  document.title = element('title').textContent = about.title;
  element('lead').textContent = translate('Distinguishes {count} classes: {names}.', {
    count: names.length,
    names: shown.join(translate(', ')),
  });
  element('facts').textContent = translate(about.facts);
}

async function tellWhetherKept(about) {
  if (!('serviceWorker' in navigator)) return;
  try {
    await navigator.serviceWorker.register('sw.js', { updateViaCache: 'none' });
    await navigator.serviceWorker.ready;
    if (!navigator.serviceWorker.controller) {
      await new Promise((resolve) => {
        navigator.serviceWorker.addEventListener('controllerchange', resolve, { once: true });
      });
    }
  } catch {
    return; // It works all the same, with a network.
  }
  if (await isKept(about)) {
    const kept = translate('The page is kept here, and works without a network as well.');
    element('offline').textContent = kept;
  }
}

// The ways in.

function takePictures() {
  for (const id of ['file', 'camera']) {
    element(id).addEventListener('change', (event) => {
      const [file] = event.target.files;
      if (file) show(file);
      event.target.value = ''; // So that the same file can be chosen again.
    });
  }
  document.addEventListener('paste', (event) => take(event, event.clipboardData));
  document.addEventListener('drop', (event) => take(event, event.dataTransfer));
  document.addEventListener('dragover', (event) => {
    event.preventDefault();
    element('stage').classList.add('over');
  });
  document.addEventListener('dragleave', () => element('stage').classList.remove('over'));
}

function take(event, transfer) {
  event.preventDefault();
  element('stage').classList.remove('over');
  const [file] = transfer.files;
  if (file) {
    show(file);
    return;
  }
  fail(
    translate(
      'There is no picture in this, only text or a link. Save the picture, and choose the file.',
    ),
  );
}

// What happens to a picture.

async function show(file) {
  const mine = ++turn;
  const current = () => mine === turn;
  clear();
  const picture = await decode(file).catch(() => null);
  if (!current()) return;
  if (!picture) {
    say('');
    fail(
      translate('{file} is not an image that this browser can read. JPEG, PNG and WebP are.', {
        file: file.name || translate('This'),
      }),
    );
    return;
  }
  let about, classify;
  try {
    about = await described;
    if (!current()) return;
    drawPicture(picture, about);
    say(translate('Waiting for the model …'));
    classify = await loaded;
  } catch (error) {
    if (current()) failToLoad(error);
    return;
  }
  if (!current()) return;
  say(translate('Looking at the picture …'));
  try {
    await predict(picture, about, classify, current);
  } catch (error) {
    if (!current()) return;
    showProgress(null);
    say('');
    fail(translate('The picture could not be classified ({reason}).', { reason: error.message }));
  }
}

async function predict(picture, about, classify, current) {
  const image = prepare(picture, about.side, about.shorter_side);
  const { probabilities, maps } = await classify(image, 1);
  if (!current()) return;
  const explain = showPredictions(probabilities, about.class_names);
  if (maps) {
    explain(maps, 'cam');
    return;
  }
  const found = await occlude(classify, image, about.side, probabilities, (share) => {
    if (current()) showProgress(share);
    return !current();
  });
  if (!found) return;
  showProgress(null);
  explain(found, 'occlusion');
}

/** Draws the whole picture, and marks the square that the network sees. */
function drawPicture(picture, about) {
  const { height, width } = picture;
  const canvas = element('picture');
  const scale = Math.min(1, LONGER_SIDE / Math.max(height, width));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.classList.toggle('pixels', Math.max(height, width) < 128);
  const context = canvas.getContext('2d');
  context.imageSmoothingQuality = 'high';
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);

  const { newHeight, newWidth, top, left } =
    centerCrop(height, width, about.side, about.shorter_side);
  const { style } = element('crop');
  style.top = `${(100 * top) / newHeight}%`;
  style.left = `${(100 * left) / newWidth}%`;
  style.height = `${(100 * about.side) / newHeight}%`;
  style.width = `${(100 * about.side) / newWidth}%`;
  element('frame').style.setProperty('--shape', canvas.width / canvas.height);
  element('frame').hidden = false;
  element('stage').classList.remove('empty');
}

/** Lists the likeliest classes; returns explain(maps, method), which makes their maps visible. */
function showPredictions(probabilities, names) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const labels = order.slice(0, NUM_PREDICTIONS);
  let [chosen] = labels;
  let explanation = null;
  const buttons = new Map();
  const choose = (label) => {
    chosen = label;
    for (const [other, button] of buttons) button.setAttribute('aria-pressed', other === chosen);
    if (explanation) showHeat(...explanation, chosen, names[chosen]);
  };
  for (const label of labels) {
    const button = makePrediction(names[label], probabilities[label]);
    button.addEventListener('click', () => choose(label));
    buttons.set(label, button);
    const item = document.createElement('li');
    item.append(button);
    element('predictions').append(item);
  }
  choose(chosen);
  const name = names[chosen];
  const share = written(probabilities[chosen]);
  say(translate('Most likely {name}, {share}.', { name, share }));
  const about = translate('The picture, most likely {name}', { name });
  element('picture').setAttribute('aria-label', about);
  return (maps, method) => {
    explanation = [maps, method];
    showHeat(...explanation, chosen, names[chosen]);
  };
}

function makePrediction(name, probability) {
  const button = document.createElement('button');
  button.type = 'button';
  const parts = ['name', 'share', 'bar'].map((kind) => {
    const part = document.createElement('span');
    part.className = kind;
    return part;
  });
  parts[0].textContent = name;
  parts[1].textContent = written(probability);
  parts[2].style.setProperty('--share', probability);
  button.append(...parts);
  return button;
}

function written(probability) {
  const tiny = probability > 0 && probability < 0.0005;
  return tiny ? translate('below 0.1%') : percent.format(probability);
}

function showHeat(maps, method, label, name) {
  const hot = drawHeat(element('heat'), maps, label);
  const ways = {
    cam: translate(
      'What in the picture speaks for {name}: a class-activation map. The hottest place is red.',
      { name },
    ),
    occlusion: translate(
      'Where a grey square makes the network less sure of {name}: an occlusion map. The hottest place is red.',
      { name },
    ),
  };
  const none = {
    cam: translate('Nothing in the picture speaks for {name} (class-activation map).', { name }),
    occlusion: translate(
      'No grey square makes the network less sure of {name} (occlusion map).',
      { name },
    ),
  };
  element('heat-legend').textContent = (hot ? ways : none)[method];
  element('heat-controls').hidden = false;
}

// What is said.

function clear() {
  fail('');
  showProgress(null);
  say(translate('Reading the picture …'));
  element('predictions').replaceChildren();
  element('heat-controls').hidden = true;
  element('heat').width = 0;
  element('frame').hidden = true;
  element('stage').classList.add('empty');
}

function say(text) {
  element('status').textContent = text;
}

function fail(sentence) {
  element('error').textContent = sentence;
}

function failToLoad(error) {
  showProgress(null);
  say('');
  fail(
    translate('The model cannot be loaded ({reason}). Reload the page to try again.', {
      reason: error.message,
    }),
  );
}

function showProgress(share) {
  element('progress').hidden = share === null;
  element('progress').value = share ?? 0;
}

start();
