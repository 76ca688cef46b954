const pre = this.parentElement.querySelector('pre');
const done = () => {
  this.textContent = 'Copied';
  setTimeout(() => { this.textContent = 'Copy as code' }, 3000);
};
const select = () => getSelection().selectAllChildren(pre);
const old = () => { select(); if (document.execCommand('copy')) done(); };
navigator.clipboard ? navigator.clipboard.writeText(pre.textContent).then(done, select) : old();
