// The language of the page: the one that it was exported in, or the first of the browser's that
// there is, or English. A classic script, since modules do not run in a page opened as a file.

{
  const { fixed, texts } = JSON.parse(document.getElementById('languages').textContent);

  /** Returns the first of the wanted languages that there is; zh is taken for zh-CN (RFC 4647). */
  const choose = (wanted) => {
    const known = new Map(['en', ...Object.keys(texts)].map((tag) => [tag.toLowerCase(), tag]));
    for (const tag of wanted) {
      for (let part = tag.toLowerCase(); part; part = part.replace(/(^|-)[^-]*$/, '')) {
        if (known.has(part)) return known.get(part);
      }
    }
    return 'en';
  };

  const language = fixed ?? choose(navigator.languages);

  /** Returns an English text in the language of the page, with values for its {placeholders}. */
  globalThis.translate = (text, values = {}) =>
    (texts[language]?.[text] ?? text).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);

  if (language !== document.documentElement.lang) {
    document.documentElement.lang = language;
    for (const element of document.querySelectorAll('[data-text]')) {
      element.innerHTML = translate(element.innerHTML);
    }
    for (const element of document.querySelectorAll('[aria-label]')) {
      element.setAttribute('aria-label', translate(element.getAttribute('aria-label')));
    }
  }
}
