// Placeholder until the researcher's view lands.
export function createEpisodesView(root) {
  return { show() { root.textContent = "episodes"; }, hide() {} };
}
