//! Chat templates, as transformers renders them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::Message;

mod json;
mod time;

/// `messages` through a template, with the beginning of the model's answer.
pub(super) fn render(
    template: &str,
    messages: &[Message],
    named: &BTreeMap<String, String>,
) -> Result<String, String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| time::now(&format));
    environment.add_filter("tojson", |value: Value, options: Kwargs| {
        let indent: Option<usize> = options.get("indent")?;
        json::write(&value, indent)
    });

    let mut context: BTreeMap<&str, Value> =
        named.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
    context.insert("messages", Value::from_serialize(messages));
    context.insert("add_generation_prompt", Value::from(true));
    for absent in ["tools", "documents"] {
        context.insert(absent, Value::from(()));
    }
    environment
        .render_named_str("chat template", &without_generation_tags(template), context)
        .map_err(|error| describe(&error))
}

/// An error with the line it arose on, and without the engine's own category.
fn describe(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

/// transformers marks the assistant's text with a tag of its own, `{% generation %}`, for training; it changes
/// nothing in the text. It becomes a condition that always holds.
fn without_generation_tags(template: &str) -> Cow<'_, str> {
    if !template.contains("generation") {
        return Cow::Borrowed(template);
    }
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((tag, after)) = tag.split_once("%}") else { break };
        let name = tag.trim_matches(['-', '+']).trim();
        let replaced = match name {
            "generation" => Cow::Owned(tag.replace(name, "if true")),
            "endgeneration" => Cow::Owned(tag.replace(name, "endif")),
            _ => Cow::Borrowed(tag),
        };
        out.extend([before, "{%", &replaced, "%}"]);
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    fn render_one(template: &str) -> Result<String, String> {
        let named = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        render(template, &[message("user", " Hi ")], &named)
    }

    #[test]
    fn blocks_on_their_own_lines_leave_no_lines() {
        let template =
            "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\nend";
        assert_eq!(render_one(template).as_deref(), Ok("user\nend"));
    }

    #[test]
    fn methods_of_python_strings_work() {
        let template = "{{ bos_token }}{{ messages[0]['content'].strip() }}{{ messages[0].role.upper() }}";
        assert_eq!(render_one(template).as_deref(), Ok("<s>HiUSER"));
    }

    #[test]
    fn absent_tools_are_none_and_unset_tokens_are_empty() {
        let template =
            "{{ tools is none }}{% if tools %}x{% endif %}{{ eos_token }}{{ add_generation_prompt }}";
        assert_eq!(render_one(template).as_deref(), Ok("TrueTrue"));
    }

    #[test]
    fn an_exception_of_the_template_is_its_message_and_line() {
        let error = render_one("a\n{{ raise_exception('roles must alternate') }}").unwrap_err();
        assert_eq!(error, "roles must alternate (line 2)");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(
            render_one("{{ {'a': [1, 'é<'], 'b': none} | tojson }}").as_deref(),
            Ok(r#"{"a": [1, "é<"], "b": null}"#)
        );
        assert_eq!(render_one("{{ [1] | tojson(indent=2) }}").as_deref(), Ok("[\n  1\n]"));
    }

    #[test]
    fn generation_tags_are_transparent() {
        let template =
            "{%- generation -%} {{ messages[0].content }} {% endgeneration %}{% if false %}{% endif %}.";
        // The message has a space on either side of its own.
        assert_eq!(render_one(template).as_deref(), Ok(" Hi  ."));
    }

    #[test]
    fn nothing_is_escaped_as_html() {
        assert_eq!(render_one("{{ '<&>' }}").as_deref(), Ok("<&>"));
    }
}
