// Pages whose title has every word of the query come first: those that begin with it, then the shortest title.
var Scorer = {
  score: ([page, title, anchor, description, score]) => {
    const query = (new URLSearchParams(location.search).get("q") || "").toLowerCase().trim();
    const name = title.toLowerCase();
    if (anchor || !query.split(/\s+/).every((word) => name.includes(word))) return score;
    return score + 100 + (name.startsWith(query) ? 100 : 0) - name.length / 2;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
