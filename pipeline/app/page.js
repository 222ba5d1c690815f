// Drop, paste, camera and keys: what the page cannot learn from the server's elements.
const picker = () => getElement(Number(document.querySelector(".picker").id.slice(1))).$refs.qRef;

function tryPictures(files) {
  if (files.length && document.querySelector(".picker")) picker().addFiles([...files].slice(0, 1));
}
// Otherwise the browser leaves the page to show the file.
for (const each of ["dragover", "drop"]) document.addEventListener(each, (event) => event.preventDefault());
document.addEventListener("drop", (event) => tryPictures(event.dataTransfer.files));
document.addEventListener("paste", (event) => tryPictures(event.clipboardData.files));

const camera = () => document.querySelector("video");
function openCamera() {
  navigator.mediaDevices.getUserMedia({ video: true }).then(
    (stream) => (camera().srcObject = stream),
    (error) => emitEvent("camera", `The camera cannot be used: ${error.message}`),
  );
}
const closeCamera = () => camera()?.srcObject?.getTracks().forEach((track) => track.stop());
function takePicture() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [camera().videoWidth, camera().videoHeight];
  if (!canvas.width) return;
  canvas.getContext("2d").drawImage(camera(), 0, 0);
  canvas.toBlob((blob) => tryPictures([new File([blob], "camera.jpg")]), "image/jpeg", 0.95);
}

document.addEventListener("keydown", (event) => {
  const mend = document.querySelector("[data-shown]");
  const held = event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.isComposing;
  if (!mend || held || document.querySelector(".q-dialog, .q-menu")) return;
  if (document.activeElement.matches("input, textarea, select, [contenteditable]")) return;
  const isControl = document.activeElement.matches("button, a, [role=tab]");
  if (isControl && /^(Enter| |ArrowRight)$/.test(event.key)) return; // it acts on the control
  if (!/^(Enter| |k|ArrowRight|[1-9]|d|u|Backspace)$/i.test(event.key)) return;
  event.preventDefault(); // Space and arrows scroll
  pressMend(event.key);
});
function pressMend(key) {
  emitEvent("mend", { key, shown: Number(document.querySelector("[data-shown]").dataset.shown) });
}
