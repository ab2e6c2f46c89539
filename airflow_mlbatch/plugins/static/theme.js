// Follows the choice between light and dark that Airflow's own pages keep. Not a module, so that it
// runs before the page is drawn.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");

  function apply() {
    let choice = null;
    try {
      choice = localStorage.getItem("theme");
    } catch {
      // Storage may be blocked; the system's choice is left.
    }
    const isDark = choice === "dark" || (choice !== "light" && system.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
  }

  apply();
  addEventListener("storage", apply);
  system.addEventListener("change", apply);
})();
