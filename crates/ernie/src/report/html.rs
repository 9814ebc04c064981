//! The page around the plots: skeleton, style, escaping.

use std::fmt::Write;

/// Text as it may stand in HTML, in an element or in a quoted attribute.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            // Control characters are not allowed in HTML at all.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A section with a heading and a sentence; `content` is HTML already.
pub(super) fn section(body: &mut String, heading: &str, sentence: &str, content: &str) {
    let _ = writeln!(body, "<section>\n<h2>{}</h2>", escape(heading));
    if !sentence.is_empty() {
        let _ = writeln!(body, "<p class=\"note\">{}</p>", escape(sentence));
    }
    body.push_str(content);
    body.push_str("</section>\n");
}

/// The whole document.
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title),
        include_str!("style.css")
    )
}
